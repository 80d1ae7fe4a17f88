#include "kernels/host_device.h"

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/shared_memory.h"

namespace terrace::kernels {

namespace {

using Clock = std::chrono::steady_clock;
constexpr uint64_t kPageBytes = 4096;

// One direction of the link: transfers in order, each as long as the throttle says.
class Lane {
 public:
  struct Transfer {
    std::vector<DeviceCopy> copies;
    absl::Status status;  // of the arguments: nothing is copied unless OK
    absl::AnyInvocable<void(absl::Status)> done;
  };

  Lane(CopyDirection direction, const HostDeviceOptions& options)
      : direction_(direction), options_(options), thread_([this] { Run(); }) {}
  ~Lane() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void Add(Transfer transfer) {
    {
      std::lock_guard lock(mutex_);
      transfers_.push_back(std::move(transfer));
      ++asked_;
    }
    changed_.notify_all();
  }

  void Synchronize() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this, until = asked_] { return finished_ >= until; });
  }

 private:
  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return stopping_ || !transfers_.empty(); });
      if (transfers_.empty()) return;
      Transfer transfer = std::move(transfers_.front());
      transfers_.pop_front();
      lock.unlock();
      if (transfer.status.ok()) Move(transfer.copies);
      transfer.done(transfer.status);
      lock.lock();
      ++finished_;
      changed_.notify_all();
    }
  }

  void Move(const std::vector<DeviceCopy>& copies) {
    const Clock::time_point begin = Clock::now();
    uint64_t bytes = 0;
    for (const DeviceCopy& copy : copies) {
      auto* device = reinterpret_cast<uint8_t*>(copy.device);
      bytes += copy.bytes;
      if (direction_ == CopyDirection::kToDevice) {
        std::memcpy(device, copy.host, copy.bytes);
      } else {
        std::memcpy(copy.host, device, copy.bytes);
      }
    }
    double seconds = static_cast<double>(options_.latency_us) * 1e-6;
    if (options_.bytes_per_s > 0) seconds += static_cast<double>(bytes) / options_.bytes_per_s;
    const auto length =
        std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    // A sleep that overran is made up for by the transfers behind it, so that the rate holds.
    free_at_ = std::max(begin, free_at_) + length;
    std::this_thread::sleep_until(free_at_);
    if (Clock::now() - free_at_ > std::chrono::milliseconds(2)) free_at_ = Clock::now();
  }

  const CopyDirection direction_;
  const HostDeviceOptions options_;
  Clock::time_point free_at_{};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Transfer> transfers_;
  uint64_t asked_ = 0, finished_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

class HostDevice final : public Device {
 public:
  explicit HostDevice(const HostDeviceOptions& options)
      : options_(options),
        up_(CopyDirection::kToDevice, options),
        down_(CopyDirection::kFromDevice, options) {}

  std::string_view name() const override { return "host"; }
  uint64_t capacity_bytes() const override { return options_.capacity_bytes; }

  absl::StatusOr<DeviceAddress> Allocate(uint64_t bytes) override {
    if (bytes == 0) return absl::InvalidArgumentError("bytes is 0; accepted: 1 or more");
    std::lock_guard lock(mutex_);
    const uint64_t free_bytes = options_.capacity_bytes - allocated_bytes_;
    if (bytes > free_bytes) {
      return absl::ResourceExhaustedError(absl::StrCat("device host: ", bytes, " bytes asked for, ",
                                                       free_bytes, " of ", options_.capacity_bytes,
                                                       " are free"));
    }
    const uint64_t pages = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
    absl::StatusOr<SharedMemory> memory = SharedMemory::Create("terrace-device", pages);
    if (!memory.ok()) return memory.status();
    // As of a GPU: it is there from the start, and other processes only read it.
    absl::Status usable = memory->Populate(0, pages);
    if (usable.ok()) usable = memory->SealFutureWrites();
    if (!usable.ok()) return usable;
    const auto address = reinterpret_cast<DeviceAddress>(memory->data());
    allocated_bytes_ += bytes;
    allocations_.emplace(address, Allocation{*std::move(memory), bytes});
    return address;
  }

  void Free(DeviceAddress address) override {
    std::lock_guard lock(mutex_);
    const auto found = allocations_.find(address);
    if (found == allocations_.end()) return;
    allocated_bytes_ -= found->second.bytes;
    allocations_.erase(found);
  }

  int ShareableFd(DeviceAddress address) override {
    std::lock_guard lock(mutex_);
    const auto found = allocations_.find(address);
    return found == allocations_.end() ? -1 : found->second.memory.fd();
  }

  void Copy(CopyDirection direction, absl::Span<const DeviceCopy> copies,
            absl::AnyInvocable<void(absl::Status)> done) override {
    Lane::Transfer transfer{{copies.begin(), copies.end()}, Check(copies), std::move(done)};
    (direction == CopyDirection::kToDevice ? up_ : down_).Add(std::move(transfer));
  }

  void Synchronize() override {
    up_.Synchronize();
    down_.Synchronize();
  }

 private:
  struct Allocation {
    SharedMemory memory;
    uint64_t bytes;
  };

  absl::Status Check(absl::Span<const DeviceCopy> copies) {
    std::lock_guard lock(mutex_);
    for (const DeviceCopy& copy : copies) {
      auto found = allocations_.upper_bound(copy.device);
      const bool inside = found != allocations_.begin() && [&] {
        --found;
        const uint64_t offset = copy.device - found->first;
        return offset <= found->second.bytes && copy.bytes <= found->second.bytes - offset;
      }();
      if (!inside) {
        return absl::InvalidArgumentError(absl::StrCat("device host: ", copy.bytes, " bytes at ",
                                                       copy.device, " are not allocated"));
      }
    }
    return absl::OkStatus();
  }

  const HostDeviceOptions options_;
  std::mutex mutex_;
  uint64_t allocated_bytes_ = 0;
  std::map<DeviceAddress, Allocation> allocations_;
  Lane up_, down_;  // last: they end before the memory does
};

}  // namespace

std::unique_ptr<Device> NewHostDevice(const HostDeviceOptions& options) {
  return std::make_unique<HostDevice>(options);
}

}  // namespace terrace::kernels
