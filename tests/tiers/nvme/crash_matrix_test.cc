// The process is killed at every labelled step of storing, sealing, reclaiming, recovering and
// stopping, in half of the seeds with what a power cut leaves of the writes that were not synced;
// then it may be killed while it recovers, and then everything it was told is durable must be
// there, and everything that is there must be whole.
//
//   TERRACE_CRASH_SEEDS=25        seeds a label; the default keeps the suite short
//   TERRACE_CRASH_CASE=LABEL/SEED that case alone, as failures name it; what the threads do
//                                 meanwhile differs, so it may take
//   TERRACE_CRASH_TIMES=100       runs of it
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/tiers/nvme/crash_child.h"
#include "tests/tiers/nvme/nvme_fixture.h"

namespace terrace {
namespace {

constexpr uint32_t kWorkWrites = 130;     // fill the store, and a third of it again
constexpr uint32_t kRecoveryWrites = 12;  // after a recovery that is to be killed
constexpr uint32_t kSecondWrites = 50;    // on what was recovered
constexpr int kRecoveryKills = 3;
constexpr int kAtOnce = 2;
constexpr unsigned kHungSeconds = 100;

using Labels = std::map<std::string, uint64_t>;

struct Ending {
  bool killed = false;  // at the step that it was to be killed at
  std::string wrong;    // empty: nothing
  Labels labels;
};

// What was said of one directory, in all of its lives.
class Ledger {
 public:
  // Runs a life in a process of its own.
  Ending Live(CrashPlan plan);
  // Erasures and pins noted so far may be forgotten.
  void IndexIsLost();
  uint64_t checked() const { return checked_; }

 private:
  struct Object {
    bool durable = false, erasing = false, erased = false, dropped = false, pinned = false;
    bool expected() const { return durable && !erasing && !dropped; }
  };

  void Take(const CrashEvent& event, Ending& ending);
  void Check(const std::map<uint32_t, Object>& before, Ending& ending);

  std::map<uint32_t, Object> objects_;
  std::map<uint32_t, uint64_t> visible_;  // in this life, with flags
  uint64_t checked_ = 0;
};

void Ledger::IndexIsLost() {
  for (auto& [number, object] : objects_) object.erased = object.pinned = false;
}

void Ledger::Take(const CrashEvent& event, Ending& ending) {
  using Kind = CrashEvent::Kind;
  const auto wrong = [&](const std::string& what) {
    if (ending.wrong.empty())
      ending.wrong = what + " (object " + std::to_string(event.object) + ")";
  };
  if (event.kind == Kind::kLabel) {
    ending.labels[event.text] = event.value;
    return;
  }
  if (event.kind == Kind::kWrong) {
    wrong(event.text);
    return;
  }
  Object& object = objects_[event.object];
  switch (event.kind) {
    case Kind::kDurable:
      object.durable = true;
      break;
    case Kind::kDropped:
      if (object.pinned) wrong("a pinned object was dropped");
      object.dropped = true;
      break;
    case Kind::kErasing:
      object.erasing = true;
      object.pinned = false;
      break;
    case Kind::kErased:
      object.erased = true;
      break;
    case Kind::kPinned:
      object.pinned = !object.erasing && !object.dropped;
      break;
    case Kind::kUnpinning:
      object.pinned = false;
      break;
    case Kind::kVisible:
      visible_.try_emplace(event.object, event.value);
      break;
    default:
      wrong("an event of an unknown kind");
  }
}

void Ledger::Check(const std::map<uint32_t, Object>& before, Ending& ending) {
  const auto wrong = [&](const char* what, uint32_t number) {
    if (ending.wrong.empty()) ending.wrong = what + std::to_string(number);
  };
  for (const auto& [number, object] : before) {
    const auto found = visible_.find(number);
    if (object.expected()) ++checked_;
    const bool gone = found == visible_.end() && !objects_[number].dropped;  // before it was read
    if (object.expected() && gone) wrong("lost: durable object ", number);
    if (object.erased && found != visible_.end()) wrong("back: erased object ", number);
    const bool unpinned = found != visible_.end() && (found->second & kRecordPinned) == 0;
    if (object.pinned && unpinned) wrong("no longer pinned: object ", number);
  }
}

Ending Ledger::Live(CrashPlan plan) {
  int pipes[2];
  if (pipe2(pipes, O_CLOEXEC) != 0) return {false, "pipe", {}};
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    alarm(kHungSeconds);
    close(pipes[0]);
    plan.events = pipes[1];
    _exit(LiveOnce(plan));
  }
  close(pipes[1]);
  Ending ending;
  const std::map<uint32_t, Object> before = objects_;
  visible_.clear();
  CrashEvent event;
  size_t have = 0;
  while (true) {
    const ssize_t count =
        read(pipes[0], reinterpret_cast<char*>(&event) + have, sizeof event - have);
    if (count <= 0) break;
    have += static_cast<size_t>(count);
    if (have < sizeof event) continue;
    have = 0;
    Take(event, ending);
  }
  close(pipes[0]);
  int status = 0;
  waitpid(child, &status, 0);
  ending.killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && !plan.kill_label.empty();
  const bool ended = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  if (ending.wrong.empty() && !ending.killed && !ended) {
    ending.wrong = "the process ended with wait status " + std::to_string(status);
  }
  if (plan.read_all) Check(before, ending);
  return ending;
}

struct Case {
  std::string label;
  uint64_t seed = 0;
  // Killed at its label while it recovers from having been killed at `first_label`; empty: killed
  // at its label while it works.
  std::string first_label;
  uint64_t first_occurrences = 1;
  uint64_t occurrences = 1;  // of the label, about as many

  std::string Name() const { return label + "/" + std::to_string(seed); }
};

struct Outcome {
  bool reached = false;
  uint64_t lives = 0, checked = 0;
  char wrong[240] = {};
};

// What else befalls the files.
void Damage(const std::string& directory, uint64_t what, bool power_cut, Ledger& ledger) {
  if (what % 8 == 0) {
    std::filesystem::remove_all(directory + "/index");
    ledger.IndexIsLost();
  } else if (what % 8 == 1) {
    std::ofstream(directory + "/index/CURRENT") << "nonsense";
    ledger.IndexIsLost();
  } else if (what % 8 == 2 && !power_cut) {
    // With what a power cut may leave of the other one, too little would be left.
    std::filesystem::remove(directory + (what / 8 % 2 == 0 ? "/superblock" : "/superblock.copy"));
  }
}

class CaseRun {
 public:
  explicit CaseRun(const Case& which)
      : case_(which), random_(std::hash<std::string>()(which.label) ^ (which.seed << 20)) {
    plan_.directory = scratch_.path() + "/nvme";
    plan_.seed = which.seed;
    power_cut_ = which.seed % 2 == 1;
  }
  Outcome Run();

 private:
  Ending Live(uint32_t writes, bool read_all, const std::string& label = "",
              uint64_t occurrences = 1) {
    plan_.writes = writes;
    plan_.read_all = read_all;
    plan_.kill_label = label;
    plan_.kill_occurrence = 1 + random_() % occurrences;
    plan_.power_cut = power_cut_;
    Ending ending = ledger_.Live(plan_);
    ++plan_.life;
    if (wrong_.empty() && !ending.wrong.empty()) {
      wrong_ = "life " + std::to_string(plan_.life) + ": " + ending.wrong;
    }
    return ending;
  }

  TemporaryDirectory scratch_;
  const Case case_;
  std::mt19937_64 random_;
  CrashPlan plan_;
  Ledger ledger_;
  bool power_cut_ = false;
  std::string wrong_;
};

Outcome CaseRun::Run() {
  Outcome outcome;
  if (case_.first_label.empty()) {
    outcome.reached = Live(kWorkWrites, false, case_.label, case_.occurrences).killed;
    Damage(plan_.directory, random_(), power_cut_, ledger_);
  } else {
    Live(kWorkWrites, false, case_.first_label, case_.first_occurrences);
    Damage(plan_.directory, random_(), power_cut_, ledger_);
    for (int i = 0; i < kRecoveryKills; ++i) {
      if (!Live(kRecoveryWrites, false, case_.label, case_.occurrences).killed) break;
      outcome.reached = true;
    }
  }
  Live(kSecondWrites, true);
  Live(0, true);
  outcome.lives = plan_.life;
  outcome.checked = ledger_.checked();
  std::snprintf(outcome.wrong, sizeof outcome.wrong, "%s", wrong_.c_str());
  return outcome;
}

// Runs cases, some at once, each in a process of its own.
class Matrix {
 public:
  void Run(const std::vector<Case>& cases);
  void Report() const;

 private:
  struct Running {
    Case which;
    int pipe = -1;
  };
  void Start(const Case& which);
  void FinishOne();

  std::map<pid_t, Running> running_;
  std::set<std::string> reached_, labels_;
  uint64_t cases_ = 0, cases_reached_ = 0, lives_ = 0, checked_ = 0, failed_ = 0;
};

void Matrix::Start(const Case& which) {
  int pipes[2];
  ASSERT_EQ(pipe2(pipes, O_CLOEXEC), 0);
  std::fflush(nullptr);
  const pid_t runner = fork();
  ASSERT_GE(runner, 0);
  if (runner == 0) {
    Outcome outcome = CaseRun(which).Run();
    _exit(write(pipes[1], &outcome, sizeof outcome) == sizeof outcome ? 0 : 1);
  }
  close(pipes[1]);
  running_[runner] = {which, pipes[0]};
}

void Matrix::FinishOne() {
  const pid_t runner = wait(nullptr);
  auto running = running_.find(runner);
  ASSERT_NE(running, running_.end());
  const Case& which = running->second.which;
  Outcome outcome;
  if (read(running->second.pipe, &outcome, sizeof outcome) != sizeof outcome) {
    std::snprintf(outcome.wrong, sizeof outcome.wrong, "the case's process died");
  }
  close(running->second.pipe);
  labels_.insert(which.label);
  if (outcome.reached) reached_.insert(which.label);
  ++cases_;
  cases_reached_ += outcome.reached;
  lives_ += outcome.lives;
  checked_ += outcome.checked;
  failed_ += outcome.wrong[0] != 0;
  EXPECT_STREQ(outcome.wrong, "") << "run again with TERRACE_CRASH_CASE=" << which.Name()
                                  << (which.first_label.empty() ? "" : ", recovering");
  running_.erase(running);
}

void Matrix::Run(const std::vector<Case>& cases) {
  for (const Case& which : cases) {
    if (running_.size() == kAtOnce) FinishOne();
    Start(which);
  }
  while (!running_.empty()) FinishOne();
}

void Matrix::Report() const {
  std::printf(
      "%zu labels, of which the process was killed at %zu; %llu cases, killed in %llu; "
      "%llu lives; %llu durable objects checked; %llu failures\n",
      labels_.size(), reached_.size(), static_cast<unsigned long long>(cases_),
      static_cast<unsigned long long>(cases_reached_), static_cast<unsigned long long>(lives_),
      static_cast<unsigned long long>(checked_), static_cast<unsigned long long>(failed_));
  for (const std::string& label : labels_) {
    if (!reached_.contains(label)) std::printf("never killed at %s\n", label.c_str());
  }
  EXPECT_GE(reached_.size(), 40u);
}

// The labels that a life of the seed passes, at work and while it recovers from being killed.
struct Reference {
  Labels work, recovery;
};

Reference ReferenceOf(uint64_t seed) {
  TemporaryDirectory scratch;
  Ledger ledger;
  CrashPlan plan;
  plan.directory = scratch.path() + "/nvme";
  plan.seed = seed;
  plan.writes = kWorkWrites;
  Reference reference;
  const Ending work = ledger.Live(plan);
  EXPECT_EQ(work.wrong, "") << "seed " << seed << ", not killed";
  reference.work = work.labels;
  std::filesystem::remove_all(plan.directory);
  ledger = Ledger();
  plan.kill_label = "store.durable";
  plan.kill_occurrence = 100;
  ledger.Live(plan);
  // Each way to lose the index has labels of its own.
  if (seed % 3 == 0) std::filesystem::remove_all(plan.directory + "/index");
  if (seed % 3 == 1) std::ofstream(plan.directory + "/index/CURRENT") << "nonsense";
  if (seed % 3 < 2) ledger.IndexIsLost();
  plan.kill_label.clear();
  plan.life = 1;
  plan.writes = kRecoveryWrites;
  const Ending recovery = ledger.Live(plan);
  EXPECT_EQ(recovery.wrong, "") << "seed " << seed << ", recovering";
  reference.recovery = recovery.labels;
  return reference;
}

std::vector<Case> CasesOf(uint64_t seeds) {
  std::vector<Reference> references;
  Labels work, recovery;  // of any seed
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    references.push_back(ReferenceOf(seed));
    work.insert(references.back().work.begin(), references.back().work.end());
    recovery.insert(references.back().recovery.begin(), references.back().recovery.end());
  }
  std::vector<Case> cases;
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    const auto times = [](const Labels& labels, const std::string& label) {
      auto found = labels.find(label);
      return found == labels.end() ? 1 : found->second;
    };
    const Reference& reference = references[seed];
    for (const auto& [label, count] : work) {
      cases.push_back({label, seed, "", 1, times(reference.work, label)});
    }
    std::mt19937_64 random(seed);
    for (const auto& [label, count] : recovery) {
      auto first =
          std::next(reference.work.begin(), static_cast<long>(random() % reference.work.size()));
      cases.push_back({label, seed, first->first, first->second, times(reference.recovery, label)});
    }
  }
  return cases;
}

TEST(CrashMatrixTest, NothingDurableIsLostAndNothingVisibleIsWrong) {
  const char* seeds_text = std::getenv("TERRACE_CRASH_SEEDS");
  const char* only = std::getenv("TERRACE_CRASH_CASE");
  uint64_t seeds = seeds_text != nullptr ? std::stoull(seeds_text) : 1;
  if (only != nullptr) seeds = std::stoull(std::strrchr(only, '/') + 1) + 1;
  std::vector<Case> cases = CasesOf(seeds);
  if (only != nullptr) {
    std::erase_if(cases, [only](const Case& which) { return which.Name() != only; });
    ASSERT_FALSE(cases.empty());
    const char* times = std::getenv("TERRACE_CRASH_TIMES");
    const std::vector<Case> once = cases;
    for (uint64_t i = times != nullptr ? std::stoull(times) : 1; i > 1; --i) {
      cases.insert(cases.end(), once.begin(), once.end());
    }
  }
  Matrix matrix;
  matrix.Run(cases);
  if (only == nullptr) matrix.Report();
}

}  // namespace
}  // namespace terrace
