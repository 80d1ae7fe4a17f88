// A client that stores and loads at random and knows what every byte must be, because a payload is
// a function of its key. Exit codes: 0 nothing wrong, 1 a wrong byte, a missing durable object or
// an unexpected error, 2 usage.
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kernels/checksum.h"
#include "kernels/shared_memory.h"
#include "transport/connection.h"

namespace terrace {
namespace {

using Clock = std::chrono::steady_clock;

struct Arguments {
  std::string socket;
  double seconds = 10;
  uint64_t seed = 1;
  uint32_t keys = 1000;
  bool remove = false;
  bool check = false;
  bool tolerate_misses = false;
  bool until_daemon_dies = false;
  std::string durable_log;
  uint32_t owner = 0;  // of --owners: stores and removes only keys of its own, loads any
  uint32_t owners = 1;
};

uint64_t Mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// What key number `index` is and what its object must contain.
struct Expected {
  explicit Expected(uint32_t index) : tokens(1 + Mix(index ^ 0x70c3) % 256) {
    for (uint64_t word = 0; word < 4; ++word) {
      const uint64_t value = Mix(uint64_t{index} << 8 | word);
      std::memcpy(key.bytes.data() + word * 8, &value, sizeof value);
    }
  }
  uint64_t WordAt(uint64_t offset) const { return Mix(key.Head64() + offset); }

  ObjectKey key;
  uint32_t tokens;
};

ObjectLayout Layout() {
  ObjectLayout layout;
  layout.fingerprint.fill(0x5a);
  // 792 bytes a token in parts of different sizes: objects of 1 KiB to 200 KiB.
  layout.part_bytes_per_token = {256, 256, 8, 16, 128, 128};
  return layout;
}

// One connection and its mappings. Every method answers Unavailable once the daemon is gone.
class Session {
 public:
  static absl::StatusOr<std::unique_ptr<Session>> Open(const std::string& socket) {
    ConnectionOptions options;
    options.socket_path = socket;
    options.hello.client_name = "stress";
    options.call_timeout_ms = 30000;
    auto connection = Connection::Open(options);
    if (!connection.ok()) return connection.status();
    auto session = std::make_unique<Session>();
    session->connection_ = *std::move(connection);
    const Welcome welcome = session->connection_->TakeWelcome();
    close(welcome.ready_event_fd);
    auto segment =
        kernels::SharedMemory::Attach(welcome.segment_fd, welcome.host_capacity_bytes, true);
    if (!segment.ok()) return segment.status();
    session->segment_ = *std::move(segment);
    auto board = kernels::SharedMemory::Attach(
        welcome.board_fd, AlignUp(welcome.board_slots * sizeof(uint32_t), 4096), false);
    if (!board.ok()) return board.status();
    session->board_ = *std::move(board);
    const auto layout_id = session->connection_->RegisterLayout(session->layout_);
    if (!layout_id.ok()) return layout_id.status();
    session->layout_id_ = *layout_id;
    return session;
  }

  Connection& connection() { return *connection_; }

  // ok, AlreadyExists, ResourceExhausted, Unavailable, or a bug. `abandon` leaves the reservation
  // uncommitted, half written, for the daemon to clean up when this process is killed.
  absl::Status Store(const Expected& expected, bool abandon) {
    const ReserveItem item{expected.key, {}, expected.tokens, 0, 0};
    auto reserved = connection_->Reserve(layout_id_, {&item, 1});
    if (!reserved.ok()) return reserved.status();
    const ReserveResult& reservation = reserved->front();
    if (!reservation.status.ok()) return reservation.status;
    CommitItem commit;
    commit.reservation_id = reservation.reservation_id;
    uint8_t* payload = segment_.data() + reservation.offset;
    for (const PartSpan& part : layout_.Parts(expected.tokens, 0)) {
      for (uint64_t at = part.offset; at < part.offset + part.bytes; at += 8) {
        const uint64_t word = expected.WordAt(at);
        std::memcpy(payload + at, &word, sizeof word);
      }
      commit.part_crcs.push_back(kernels::Crc32c(payload + part.offset, part.bytes));
      if (abandon) return absl::OkStatus();
    }
    const auto committed = connection_->Commit({&commit, 1});
    return committed.ok() ? committed->front() : committed.status();
  }

  // ok, NotFound (a miss), ResourceExhausted, Unavailable; Aborted when the daemon says that what
  // it read back was not right; DataLoss when it says nothing and a byte is wrong.
  absl::Status LoadAndCheck(const Expected& expected) {
    const auto acquired = connection_->Acquire(layout_id_, {&expected.key, 1}, {});
    if (!acquired.ok()) return acquired.status();
    const AcquireResult& object = acquired->results.front();
    if (!object.status.ok()) return object.status;
    const absl::Status checked = WaitAndCheck(expected, object);
    const absl::Status released = connection_->Release({&acquired->lease_id, 1});
    return checked.ok() ? released : checked;
  }

  absl::StatusOr<bool> Durable(const Expected& expected) {
    std::vector<ExtentInfo> extents;
    const absl::Status status = connection_->Lookup(layout_id_, {&expected.key, 1}, extents);
    if (!status.ok()) return status;
    return !extents.empty() && (extents.front().flags & kFlagDurable) != 0;
  }

 private:
  absl::Status WaitAndCheck(const Expected& expected, const AcquireResult& object) {
    if (object.token_count != expected.tokens) {
      return absl::DataLossError(absl::StrCat(expected.key.ToHex(), ": token count is ",
                                              object.token_count, ", stored ", expected.tokens));
    }
    auto* word = reinterpret_cast<std::atomic<uint32_t>*>(board_.data()) + object.board_slot;
    const std::vector<PartSpan> parts = layout_.Parts(expected.tokens, 0);
    for (uint32_t i = 0; i < parts.size(); ++i) {
      // Reads each part as soon as it is said to be there.
      while (ReadyWordParts(word->load(std::memory_order_acquire)) <= i) {
        const uint32_t seen = word->load(std::memory_order_acquire);
        if (ReadyWordState(seen) == ReadyState::kFailed) {
          return absl::AbortedError(expected.key.ToHex() + ": its load failed");
        }
        if (ReadyWordParts(seen) > i) break;
        const timespec timeout{.tv_sec = 0, .tv_nsec = 100'000'000};
        syscall(SYS_futex, word, FUTEX_WAIT, seen, &timeout, nullptr, 0);
        if (!connection_->alive()) return absl::UnavailableError("the daemon died during a load");
      }
      for (uint64_t at = parts[i].offset; at < parts[i].offset + parts[i].bytes; at += 8) {
        uint64_t found;
        std::memcpy(&found, segment_.data() + object.offset + at, sizeof found);
        if (found != expected.WordAt(at)) {
          return absl::DataLossError(absl::StrCat("WRONG BYTES: ", expected.key.ToHex(), " part ",
                                                  i, " offset ", at, " source tier ",
                                                  static_cast<int>(object.source)));
        }
      }
    }
    return absl::OkStatus();
  }

  std::unique_ptr<Connection> connection_;
  kernels::SharedMemory segment_, board_;
  ObjectLayout layout_ = Layout();
  uint32_t layout_id_ = 0;
};

// Lines "+ INDEX" (reported durable) and "- INDEX" (about to be removed). One write(2) a line on an
// O_APPEND file: processes share it, and a killed one leaves whole lines.
class DurableLog {
 public:
  explicit DurableLog(const std::string& path) : path_(path) {}
  bool on() const { return !path_.empty(); }
  void Append(char mark, uint32_t index) {
    std::ofstream file(path_, std::ios::app);
    file << (absl::StrCat(std::string(1, mark), " ", index, "\n")) << std::flush;
  }
  // Indices whose last line is "+".
  std::set<uint32_t> Load() const {
    std::set<uint32_t> durable;
    std::ifstream file(path_);
    char mark;
    uint32_t index;
    while (file >> mark >> index) {
      if (mark == '+') durable.insert(index);
      if (mark == '-') durable.erase(index);
    }
    return durable;
  }

 private:
  std::string path_;
};

struct Counts {
  uint64_t stored = 0, loaded = 0, missed = 0, removed = 0, refused = 0, durable = 0;
};

class Load {
 public:
  Load(const Arguments& args, Session& session)
      : args_(args), session_(session), log_(args.durable_log), random_(args.seed) {}

  // Works until the time is up; the first status that is no part of normal life ends it.
  absl::Status Run(Counts& counts) {
    const auto end = Clock::now() + std::chrono::duration<double>(args_.seconds);
    auto report_at = Clock::now();
    while (Clock::now() < end) {
      absl::Status status = Step(counts);
      if (!status.ok()) return status;
      if (log_.on() && Clock::now() >= report_at) {
        status = ReportDurable(counts);
        if (!status.ok()) return status;
        report_at = Clock::now() + std::chrono::milliseconds(50);
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Step(Counts& counts) {
    const auto index = static_cast<uint32_t>(random_() % args_.keys);
    const bool mine = index % args_.owners == args_.owner;
    const Expected expected(index);
    if (mine && args_.remove && random_() % 16 == 0) return Remove(index, expected, counts);
    const absl::Status loaded = session_.LoadAndCheck(expected);
    if (loaded.ok()) ++counts.loaded;
    if (absl::IsResourceExhausted(loaded)) ++counts.refused;
    if (!absl::IsNotFound(loaded)) return Tolerated(loaded);
    ++counts.missed;
    if (!mine) return absl::OkStatus();
    const bool abandon = random_() % 64 == 0 && abandoned_ < 8;
    const absl::Status stored = session_.Store(expected, abandon);
    if (stored.ok() && abandon) ++abandoned_;
    if (stored.ok() && !abandon) {
      ++counts.stored;
      not_durable_.insert(index);
    }
    if (absl::IsResourceExhausted(stored)) {
      ++counts.refused;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return absl::IsAlreadyExists(stored) ? absl::OkStatus() : Tolerated(stored);
  }

  // Back-pressure is a valid answer.
  static absl::Status Tolerated(const absl::Status& status) {
    return absl::IsResourceExhausted(status) ? absl::OkStatus() : status;
  }

  absl::Status Remove(uint32_t index, const Expected& expected, Counts& counts) {
    // Said before it happens: after a crash in between, the object may be there or not.
    if (log_.on()) log_.Append('-', index);
    not_durable_.erase(index);
    const absl::Status removed = session_.connection().Remove(expected.key);
    if (removed.ok()) ++counts.removed;
    // Leased by another client right now, or never stored: both fine.
    if (absl::IsNotFound(removed) || absl::IsFailedPrecondition(removed)) return absl::OkStatus();
    return removed;
  }

  // Flush when it says that nothing is pending, else what lookup says object by object.
  absl::Status ReportDurable(Counts& counts) {
    const auto flushed = session_.connection().Flush();
    if (!flushed.ok()) return flushed.status();
    for (auto it = not_durable_.begin(); it != not_durable_.end();) {
      bool durable = flushed->pending_objects == 0;
      if (!durable) {
        const auto looked_up = session_.Durable(Expected(*it));
        if (!looked_up.ok()) return looked_up.status();
        durable = *looked_up;
      }
      if (durable) {
        log_.Append('+', *it);
        ++counts.durable;
      }
      it = durable ? not_durable_.erase(it) : std::next(it);
    }
    return absl::OkStatus();
  }

  const Arguments& args_;
  Session& session_;
  DurableLog log_;
  std::mt19937_64 random_;
  std::set<uint32_t> not_durable_;  // stored by this process, not yet reported durable
  int abandoned_ = 0;
};

// Every key: what is visible must be right, what is in the log must be visible.
int Check(const Arguments& args, Session& session) {
  const DurableLog log(args.durable_log);
  const std::set<uint32_t> durable = log.on() ? log.Load() : std::set<uint32_t>{};
  uint64_t found = 0, wrong = 0, lost = 0;
  for (uint32_t index = 0; index < args.keys; ++index) {
    absl::Status status = session.LoadAndCheck(Expected(index));
    while (absl::IsResourceExhausted(status)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      status = session.LoadAndCheck(Expected(index));
    }
    if (status.ok()) ++found;
    if (status.ok() || (absl::IsNotFound(status) && !durable.contains(index))) continue;
    if (args.tolerate_misses && (absl::IsNotFound(status) || absl::IsAborted(status))) {
      ++lost;
      continue;
    }
    ++wrong;
    std::printf("key %u %s: %s\n", index, durable.contains(index) ? "reported durable" : "visible",
                status.ToString().c_str());
  }
  std::printf("checked: %lu found, %zu durable, %lu lost, %lu wrong\n", found, durable.size(), lost,
              wrong);
  return wrong == 0 ? 0 : 1;
}

int RunLoad(const Arguments& args, Session& session) {
  Counts counts;
  const absl::Status status = Load(args, session).Run(counts);
  std::printf("stored %lu loaded %lu missed %lu removed %lu refused %lu durable %lu\n",
              counts.stored, counts.loaded, counts.missed, counts.removed, counts.refused,
              counts.durable);
  if (status.ok()) return 0;
  if (absl::IsUnavailable(status) && args.until_daemon_dies) return 0;
  std::printf("%s\n", status.ToString().c_str());
  return 1;
}

int Main(int argc, char** argv) {
  Arguments args;
  CLI::App app("Stores and loads at random and checks every byte", "stress_client");
  app.add_option("--socket", args.socket)->required();
  app.add_option("--seconds", args.seconds);
  app.add_option("--seed", args.seed);
  app.add_option("--keys", args.keys)->check(CLI::PositiveNumber);
  app.add_option("--owner", args.owner);
  app.add_option("--owners", args.owners)->check(CLI::PositiveNumber);
  app.add_flag("--remove", args.remove, "Remove objects too");
  app.add_flag("--check", args.check, "Read every key once instead");
  app.add_flag(
      "--tolerate-misses", args.tolerate_misses,
      "With --check: a durable object may be gone, or its load may fail; never a wrong byte");
  app.add_flag("--until-daemon-dies", args.until_daemon_dies, "Its death is no error");
  app.add_option("--durable-log", args.durable_log, "Keys reported durable; read with --check");
  CLI11_PARSE(app, argc, argv);
  auto session = Session::Open(args.socket);
  if (!session.ok()) {
    std::printf("%s\n", session.status().ToString().c_str());
    return absl::IsUnavailable(session.status()) && args.until_daemon_dies ? 0 : 1;
  }
  return args.check ? Check(args, **session) : RunLoad(args, **session);
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
