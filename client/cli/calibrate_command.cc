// terrace calibrate: the Python package does it.
#include "client/cli/commands.h"
#include "client/cli/python.h"

namespace terrace::cli {

int RunCalibrate(const std::vector<std::string>& arguments) {
  const std::string python = FindPython("calibrate", "calibrate");
  if (python.empty()) return kError;
  std::vector<std::string> words = {python, "-m", "terrace_kv", "calibrate"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  BecomeProgram(words);
  return kError;
}

}  // namespace terrace::cli
