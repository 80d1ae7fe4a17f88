#include "tiers/nvme/io_queue.h"

#include <limits.h>

#include <algorithm>

namespace terrace::nvme {

void Request::Add(const Part& part) {
  if (parts.empty()) kind = part.job->is_write() ? Kind::kWrite : Kind::kRead;
  parts.push_back(part);
  bytes += part.bytes();
}

void Request::Aim() {
  const Transfer& first = *parts.front().job->transfer;
  fd = first.file->fd;
  offset = first.file_offset + parts.front().begin + moved;
  iovecs.clear();
  const auto add = [this](uint8_t* base, uint64_t begin, uint64_t end) {
    if (begin < end) iovecs.push_back({base + begin, end - begin});
  };
  uint64_t skip = moved;
  for (const Part& part : parts) {
    const uint64_t skipped = std::min(skip, part.bytes());
    skip -= skipped;
    const uint64_t begin = part.begin + skipped;
    const Transfer& transfer = *part.job->transfer;
    const uint64_t head = transfer.head.size_bytes();
    add(transfer.head.data(), begin, std::min(part.end, head));
    add(transfer.payload, std::max(begin, head) - head, std::max(part.end, head) - head);
  }
  buffers = iovecs.data();
  buffer_count = static_cast<int>(iovecs.size());
}

IoQueue::Urgency IoQueue::UrgencyOf(const Job& job) {
  // Writes are finished in order of arrival instead: half-written records help nobody.
  const uint64_t share = job.is_write() ? 0 : (job.issued << 16) / job.total;
  return {job.transfer->priority, job.transfer->batch, share, job.arrival};
}

bool IoQueue::ReadsAreUrgent(Clock::time_point now) const {
  return urgent_reads_ > 0 || now < urgent_until_;
}

// The most that one write takes: less while somebody waits for reads.
uint64_t IoQueue::WriteLimit(Clock::time_point now) const {
  return ReadsAreUrgent(now) ? piece_bytes_ : write_pieces_ * piece_bytes_;
}

// A sixteenth of a piece more is still one request: a record's header is no request of its own.
bool IoQueue::Exceeds(uint64_t bytes, uint64_t limit) const {
  return bytes > limit + piece_bytes_ / 16;
}

// The head of a write of several requests follows its payload, and only once that is written: a
// process that is killed leaves no head without its payload.
bool IoQueue::WaitsForPayload(const Job& job) const {
  return job.split && job.issued == job.transfer->payload_bytes && job.in_flight > 0;
}

void IoQueue::Add(Job& job) {
  urgent_reads_ += job.is_urgent();
  Enqueue(job);
}

void IoQueue::Enqueue(Job& job) {
  if (job.issued == job.total || !job.status.ok() || WaitsForPayload(job)) return;
  job.queued = true;
  (job.is_write() ? writes_ : reads_).emplace(UrgencyOf(job), &job);
  if (!job.is_write() || job.issued > 0) return;
  whole_.emplace(Place{job.transfer->file.get(), job.transfer->file_offset}, &job);
}

void IoQueue::Dequeue(Job& job) {
  job.queued = false;
  (job.is_write() ? writes_ : reads_).erase(UrgencyOf(job));
  if (!job.is_write() || job.issued > 0) return;
  whole_.erase({job.transfer->file.get(), job.transfer->file_offset});
}

void IoQueue::Reprioritize(Job& job, IoPriority priority, uint64_t batch) {
  const bool queued = job.queued;
  if (queued) Dequeue(job);
  urgent_reads_ -= job.is_urgent();
  job.transfer->priority = priority;
  job.transfer->batch = batch;
  urgent_reads_ += job.is_urgent();
  if (queued) Enqueue(job);
}

// A read ahead has one piece in flight, so that a demand that comes now waits behind no more. One
// that checks or moves records has more while nobody reads.
bool IoQueue::IsHeldBack(const Job& job, Clock::time_point now) const {
  if (!job.is_patient() || patient_reads_in_flight_ == 0) return false;
  return job.transfer->priority == IoPriority::kQueued || ReadsAreUrgent(now);
}

void IoQueue::Withdraw(Job& job) {
  if (job.queued) Dequeue(job);
}

void IoQueue::Remove(Job& job, Clock::time_point now) {
  Withdraw(job);
  if (!job.is_urgent()) return;
  --urgent_reads_;
  urgent_until_ = now + kQuiet;
}

void IoQueue::TakePiece(Job& job, uint64_t limit, Request& request) {
  Dequeue(job);
  if (job.is_write() && job.issued == 0) job.split = Exceeds(job.total, limit);
  // In the order of issue a split write begins with its payload.
  const uint64_t payload = job.transfer->payload_bytes;
  const uint64_t end = job.split && job.issued < payload ? payload : job.total;
  uint64_t bytes = end - job.issued;
  if (Exceeds(bytes, limit)) bytes = limit;
  uint64_t begin = job.issued;
  if (job.split) {
    begin =
        job.issued < payload ? job.transfer->head.size_bytes() + job.issued : job.issued - payload;
  }
  job.issued += bytes;
  ++job.in_flight;
  request.Add({&job, begin, begin + bytes});
  Enqueue(job);
}

std::unique_ptr<Request> IoQueue::NextRead(Clock::time_point now) {
  if (reads_.empty() || reads_in_flight_ + writes_in_flight_ >= queue_depth_) return nullptr;
  const bool write_is_due =
      !writes_.empty() && writes_in_flight_ == 0 && reads_since_write_ >= kReadsPerWrite;
  if (write_is_due) return nullptr;
  Job& job = *reads_.begin()->second;
  if (IsHeldBack(job, now)) return nullptr;
  auto request = std::make_unique<Request>();
  TakePiece(job, piece_bytes_, *request);
  ++reads_in_flight_;
  request->patient = job.is_patient();
  patient_reads_in_flight_ += request->patient;
  reads_since_write_ += !writes_.empty();
  return request;
}

std::unique_ptr<Request> IoQueue::NextWrite(Clock::time_point now) {
  const uint32_t depth = ReadsAreUrgent(now) ? 1 : write_depth_;
  if (writes_.empty() || writes_in_flight_ >= depth ||
      reads_in_flight_ + writes_in_flight_ >= queue_depth_) {
    return nullptr;
  }
  auto request = std::make_unique<Request>();
  Job& job = *writes_.begin()->second;
  const uint64_t limit = WriteLimit(now);
  TakePiece(job, limit, *request);
  if (!job.split) Merge(limit, *request);
  ++writes_in_flight_;
  reads_since_write_ = 0;
  return request;
}

// Adds the writes that follow in the file, of whatever class: they cost least now.
void IoQueue::Merge(uint64_t limit, Request& request) {
  const SegmentFile* file = request.parts.front().job->transfer->file.get();
  uint64_t end = request.parts.front().job->transfer->file_offset + request.bytes;
  for (uint64_t buffers = 4; buffers <= IOV_MAX; buffers += 2) {  // at most two a part
    auto next = whole_.find({file, end});
    if (next == whole_.end() || request.bytes + next->second->total > limit) return;
    Job& job = *next->second;
    end += job.total;
    TakePiece(job, limit, request);
  }
}

void IoQueue::PutBack(Request& request, size_t from) {
  for (size_t i = from; i < request.parts.size(); ++i) {
    const Request::Part& part = request.parts[i];
    request.bytes -= part.bytes();
    --part.job->in_flight;
    part.job->issued -= part.bytes();
    if (!part.job->queued) Enqueue(*part.job);
  }
  request.parts.resize(from);
  if (from == 0) --writes_in_flight_;
}

void IoQueue::Completed(const Request& request) {
  if (request.kind == IoOp::Kind::kWrite) {
    --writes_in_flight_;
  } else {
    --reads_in_flight_;
    patient_reads_in_flight_ -= request.patient;
  }
  for (const Request::Part& part : request.parts) {
    --part.job->in_flight;
    if (!part.job->queued) Enqueue(*part.job);
  }
}

}  // namespace terrace::nvme
