// One life of a store in a process of its own, which is killed at a step if told to: what the crash
// matrix forks. It says what it was told by the tier over a pipe before it goes on.
#pragma once

#include <cstdint>
#include <string>

namespace terrace {

// What happened, in the order in which it did. Of fixed size, so that each is written at once.
struct CrashEvent {
  enum class Kind : uint32_t {
    kDurable,    // the write of `object` was acknowledged
    kDropped,    // the tier said so
    kErasing,    // Erase is about to be called
    kErased,     // and its note is in the index
    kPinned,     // and noted
    kUnpinning,  // is about to be called
    kVisible,    // Recover showed it, `value` are its flags, and it was read back whole
    kLabel,      // `text` was reached `value` times; at the end of a life that was not killed
    kWrong,      // `text` says what; of `object`
  };
  Kind kind = Kind::kDurable;
  uint32_t object = 0;
  uint64_t value = 0;
  char text[112] = {};
};

struct CrashPlan {
  std::string directory;
  uint64_t seed = 0;
  uint32_t life = 0;       // of the directory, counted from 0
  uint32_t writes = 0;     // of objects, before it stops in order
  bool read_all = false;   // everything that Recover shows, before anything else
  std::string kill_label;  // empty: it is not killed
  uint64_t kill_occurrence = 0;
  bool power_cut = false;
  int events = -1;  // where they go
};

// Runs it. Returns the exit status of the process: 0 unless it could not be run.
int LiveOnce(const CrashPlan& plan);

}  // namespace terrace
