#include "codec/gpu_profile.h"

#include <algorithm>
#include <cstring>

namespace terrace::codec {

using kernels::GpuSection;

GpuProfile::GpuProfile(const Profile& profile, const Encoder* encoder) {
  std::vector<uint32_t> slots(kernels::kGpuTables * kernels::kRansTotal);
  kernels::PackDecodeTables(profile.tables(), slots.data());
  decode_tables_ = Append(slots.data(), slots.size());
  std::vector<kernels::EncodeSymbol> symbols(kernels::kGpuTables * kernels::kRansSymbols);
  kernels::PackEncodeTables(profile.tables(), symbols.data());
  encode_tables_ = Append(symbols.data(), symbols.size());
  frequencies_ = Append(profile.frequencies().data(), profile.frequencies().size());
  for (uint32_t s = 0; s < 2 * profile.layers(); ++s) AppendSection(profile, encoder, s);
  descriptors_ = Append(sections_.data(), sections_.size());
}

template <typename T>
size_t GpuProfile::Append(const T* values, size_t count) {
  const size_t at = image_.size(), bytes = count * sizeof(T);
  image_.resize((at + bytes + kAlignment - 1) / kAlignment * kAlignment);
  if (bytes != 0) std::memcpy(image_.data() + at, values, bytes);
  return at;
}

void GpuProfile::AppendSection(const Profile& profile, const Encoder* encoder, uint32_t s) {
  const SectionProfile& section = profile.section(s);
  const bool keys = s % 2 == 0;
  GpuSection gpu;
  gpu.shape = {profile.heads(), keys ? profile.k_dim() : profile.v_dim(), section.block,
               keys ? profile.pairing() : kernels::RopePairing::kNone,
               keys ? profile.rotary_dim() : 0};
  std::vector<kernels::ColumnPiece> pieces(kernels::PieceCount(gpu.shape));
  kernels::CutColumns(gpu.shape, pieces.data());
  std::vector<kernels::MatrixWords> matrix(kernels::PackedMatrixSize(gpu.shape));
  kernels::PackMatrix(gpu.shape, section.pairs.data(), pieces.data(), matrix.data());
  gpu.piece_count = static_cast<uint32_t>(pieces.size());
  gpu.level_slope = section.level_slope;
  sections_.push_back(gpu);
  Offsets at{Append(section.scale16.data(), section.scale16.size()),
             Append(section.mean.data(), section.mean.size()),
             Append(section.row_scale.data(), section.row_scale.size()),
             Append(pieces.data(), pieces.size()), Append(matrix.data(), matrix.size())};
  if (encoder != nullptr) {
    const std::vector<float>& inverse = encoder->inverse(s);
    if (!inverse.empty()) at.inverse = Append(inverse.data(), inverse.size());
    const std::vector<float>& weights = section.level_weights;
    if (!weights.empty()) at.level_weights = Append(weights.data(), weights.size());
  }
  offsets_.push_back(at);
  scratch_coefficients_ = std::max(scratch_coefficients_, gpu.shape.ScratchCoefficients());
}

const std::vector<uint8_t>& GpuProfile::ImageAt(const uint8_t* base) {
  const auto floats = [base](size_t at) {
    return at == 0 ? nullptr : reinterpret_cast<const float*>(base + at);
  };
  for (size_t s = 0; s < sections_.size(); ++s) {
    const Offsets& at = offsets_[s];
    sections_[s].scale16 = reinterpret_cast<const int16_t*>(base + at.scale16);
    sections_[s].mean = floats(at.mean);
    sections_[s].row_scale = floats(at.row_scale);
    sections_[s].pieces = reinterpret_cast<const kernels::ColumnPiece*>(base + at.pieces);
    sections_[s].matrix = reinterpret_cast<const kernels::MatrixWords*>(base + at.matrix);
    sections_[s].inverse = floats(at.inverse);
    sections_[s].level_weights = floats(at.level_weights);
  }
  std::memcpy(image_.data() + descriptors_, sections_.data(),
              sections_.size() * sizeof(GpuSection));
  return image_;
}

const GpuSection* GpuProfile::SectionAt(const uint8_t* base, uint32_t s) const {
  return reinterpret_cast<const GpuSection*>(base + descriptors_) + s;
}

const uint32_t* GpuProfile::DecodeTablesAt(const uint8_t* base) const {
  return reinterpret_cast<const uint32_t*>(base + decode_tables_);
}

const kernels::EncodeSymbol* GpuProfile::EncodeTablesAt(const uint8_t* base) const {
  return reinterpret_cast<const kernels::EncodeSymbol*>(base + encode_tables_);
}

const uint64_t* GpuProfile::FrequenciesAt(const uint8_t* base) const {
  return reinterpret_cast<const uint64_t*>(base + frequencies_);
}

}  // namespace terrace::codec
