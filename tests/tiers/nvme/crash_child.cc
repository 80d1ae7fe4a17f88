#include "tests/tiers/nvme/crash_child.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "spdlog/spdlog.h"
#include "tests/support/faulty_system.h"
#include "tests/tiers/nvme/nvme_fixture.h"

namespace terrace {

namespace {

constexpr uint32_t kObjectsPerLife = 1000;
constexpr uint32_t kLivesPerSeed = 10;
constexpr size_t kWritesInFlight = 6;
constexpr size_t kMaxPinned = 4;
constexpr uint32_t kNoObjectNumber = UINT32_MAX;

// An object of 8 to 200 KiB that follows from its number; now and then one longer than a segment.
TestObject ObjectOf(uint32_t number) {
  std::mt19937_64 random(number * uint64_t{0x9e3779b97f4a7c15});
  const uint32_t parts = 1 + random() % 4;
  const bool longer = random() % 40 == 0;
  const uint64_t bytes =
      longer ? 560 * kKiB + random() % (100 * kKiB) : 8 * kKiB + random() % (192 * kKiB);
  TestObject object = MakeObject(number, parts, bytes / parts);
  object.meta.lifetime = static_cast<Lifetime>(random() % kLifetimes);
  return object;
}

class Life {
 public:
  explicit Life(const CrashPlan& plan)
      : plan_(plan), random_(plan.seed * 1'000'003 + plan.life), system_(random_()) {}
  int Run();

 private:
  struct Live {
    RecordId id = kNoRecord;
    bool pinned = false;
  };

  bool Open();
  void ReadAll();
  void Work();
  void Write();
  void Read(uint32_t number, RecordId id);
  void Erase(uint32_t number, RecordId id);
  std::map<uint32_t, Live>::iterator AnyLive();

  void Send(const CrashEvent& event) {
    [[maybe_unused]] const ssize_t sent = write(plan_.events, &event, sizeof event);
  }
  void Tell(CrashEvent::Kind kind, uint32_t object, uint64_t value = 0,
            const std::string& text = "") {
    CrashEvent event;
    event.kind = kind;
    event.object = object;
    event.value = value;
    std::snprintf(event.text, sizeof event.text, "%s", text.c_str());
    system_.WhileAlive([&] { Send(event); });
  }
  void Wrong(uint32_t object, const std::string& what) {
    Tell(CrashEvent::Kind::kWrong, object, 0, what);
  }

  const CrashPlan plan_;
  std::mt19937_64 random_;
  FaultySystem system_;
  TestLoop loop_;
  std::unique_ptr<NvmeTier> tier_;
  std::map<uint32_t, Live> live_;
  std::vector<std::pair<uint32_t, RecordId>> recovered_;
  std::vector<RecordId> duplicates_;
  std::vector<uint32_t> unnoted_pins_;
  size_t writing_ = 0, reading_ = 0;
  uint32_t next_ = 0;
  std::mutex mutex_;
  std::deque<uint32_t> erasing_;  // guarded by mutex_; their notes are written in this order
};

bool Life::Open() {
  NvmeOptions options;
  options.directory = plan_.directory;
  options.segment_bytes = 512 * kKiB;
  options.capacity_bytes = 12 * options.segment_bytes;
  options.piece_bytes = 16 * kKiB;
  options.queue_depth = 8;
  options.engine = plan_.seed % 4 == 3 ? nvme::EngineChoice::kThreads : nvme::EngineChoice::kAuto;
  options.system = &system_;
  auto tier = NvmeTier::Open(options, loop_.post());
  if (!tier.ok()) {
    Wrong(0, std::string(tier.status().message()));
    return false;
  }
  tier_ = *std::move(tier);
  tier_->OnDropped([this](RecordId id, const ObjectKey&) {
    auto dropped = std::find_if(live_.begin(), live_.end(),
                                [id](const auto& live) { return live.second.id == id; });
    if (dropped == live_.end()) return;
    Tell(CrashEvent::Kind::kDropped, dropped->first);
    live_.erase(dropped);
  });
  absl::Status status =
      tier_->Recover([](uint64_t) {},
                     [this](RecordId id, const RecordMeta& meta) {
                       const bool pinned = (meta.flags & kRecordPinned) != 0;
                       const bool first = live_.try_emplace(meta.cost_us, Live{id, pinned}).second;
                       if (!first) duplicates_.push_back(id);
                       recovered_.emplace_back(meta.cost_us, id);
                     });
  if (!status.ok()) Wrong(0, std::string(status.message()));
  return status.ok();
}

// Every record, duplicates too.
void Life::ReadAll() {
  for (const auto& [number, id] : recovered_) {
    Read(number, id);
    loop_.RunUntil([this] { return reading_ < 4; });
  }
  if (!loop_.RunUntil([this] { return reading_ == 0; })) Wrong(0, "a read is never answered");
}

void Life::Read(uint32_t number, RecordId id) {
  auto object = std::make_shared<TestObject>(ObjectOf(number));
  auto payload = std::make_shared<kernels::AlignedBuffer>(object->meta.payload_bytes);
  ReadRequest request;
  request.record = id;
  request.key = object->meta.key;
  request.fingerprint = object->meta.fingerprint;
  request.destination = payload->data();
  request.done = [this, number, id, object, payload](absl::StatusOr<RecordMeta> meta) {
    --reading_;
    auto live = live_.find(number);
    if (live == live_.end() || live->second.id != id) {
      if (absl::IsDataLoss(meta.status())) return;  // erased or dropped before it was asked for
    }
    if (!meta.ok()) {
      Wrong(number, std::string(meta.status().message()));
    } else if (meta->part_crcs != object->meta.part_crcs ||
               std::memcmp(payload->data(), object->payload.data(), meta->payload_bytes) != 0) {
      Wrong(number, "other bytes than were written");
    } else {
      const bool pinned = live != live_.end() && live->second.pinned;
      Tell(CrashEvent::Kind::kVisible, number, pinned ? kRecordPinned : 0);
    }
  };
  ++reading_;
  tier_->Read(std::move(request));
}

void Life::Write() {
  const uint32_t number =
      static_cast<uint32_t>((plan_.seed * kLivesPerSeed + plan_.life) * kObjectsPerLife + next_++);
  auto object = std::make_shared<TestObject>(ObjectOf(number));
  ++writing_;
  tier_->Write({object->meta, object->payload.data(), IoPriority::kBackground,
                [this, number, object](absl::StatusOr<RecordId> id) {
                  --writing_;
                  if (id.ok()) {
                    Tell(CrashEvent::Kind::kDurable, number);
                    live_[number] = {*id, false};
                  } else if (!absl::IsResourceExhausted(id.status())) {
                    Wrong(number, std::string(id.status().message()));
                  }
                }});
}

void Life::Erase(uint32_t number, RecordId id) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    erasing_.push_back(number);
  }
  tier_->Erase(id);
}

std::map<uint32_t, Life::Live>::iterator Life::AnyLive() {
  if (live_.empty()) return live_.end();
  return std::next(live_.begin(), static_cast<long>(random_() % live_.size()));
}

void Life::Work() {
  for (uint32_t writes = 0; writes < plan_.writes;) {
    const uint64_t what = random_() % 100;
    auto live = AnyLive();
    if (what < 60 || live == live_.end()) {
      Write();
      ++writes;
    } else if (what < 70) {
      Read(live->first, live->second.id);
      tier_->Touch(live->second.id);
    } else if (what < 83) {
      tier_->Touch(live->second.id);
    } else if (what < 92) {
      Tell(CrashEvent::Kind::kErasing, live->first);
      Erase(live->first, live->second.id);
      live_.erase(live);
    } else if (live->second.pinned) {
      Tell(CrashEvent::Kind::kUnpinning, live->first);
      std::erase(unnoted_pins_, live->first);
      live->second.pinned = false;
      tier_->SetPinned(live->second.id, false);
    } else if (std::count_if(live_.begin(), live_.end(), [](const auto& entry) {
                 return entry.second.pinned;
               }) < static_cast<long>(kMaxPinned)) {
      live->second.pinned = true;
      unnoted_pins_.push_back(live->first);
      tier_->SetPinned(live->second.id, true);
    }
    if (!loop_.RunUntil([this] { return writing_ < kWritesInFlight && reading_ < 4; })) {
      Wrong(0, "something is never answered");
      return;
    }
    if (tier_->pending_pins() > 0) continue;
    for (uint32_t number : unnoted_pins_) Tell(CrashEvent::Kind::kPinned, number);
    unnoted_pins_.clear();
  }
  if (!loop_.RunUntil([this] { return writing_ == 0 && reading_ == 0; })) {
    Wrong(0, "something is never answered");
  }
}

int Life::Run() {
  spdlog::set_level(spdlog::level::off);
  system_.ModelDisk();
  // Under the lock of the system, and so never once the process is being killed.
  system_.OnStep([this](const char* label) {
    if (std::strcmp(label, "erase.noted") != 0) return;
    CrashEvent event;
    event.kind = CrashEvent::Kind::kErased;
    std::lock_guard<std::mutex> lock(mutex_);
    if (erasing_.empty()) return;
    event.object = erasing_.front();
    erasing_.pop_front();
    if (event.object != kNoObjectNumber) Send(event);
  });
  if (!plan_.kill_label.empty()) {
    system_.KillAt(plan_.kill_label, plan_.kill_occurrence, plan_.power_cut);
  }
  if (!Open()) return 1;
  if (plan_.read_all) ReadAll();
  for (RecordId id : duplicates_) Erase(kNoObjectNumber, id);  // as the daemon does
  Work();
  tier_.reset();
  for (const auto& [label, count] : system_.Labels()) {
    Tell(CrashEvent::Kind::kLabel, 0, count, label);
  }
  return 0;
}

}  // namespace

int LiveOnce(const CrashPlan& plan) { return Life(plan).Run(); }

}  // namespace terrace
