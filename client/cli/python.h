// Commands of `terrace` that the Python package does: finds an interpreter that has the package.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace terrace::cli {

// $TERRACE_PYTHON or python3, when it has terrace_kv. Empty after a message on stderr that says
// what `command` needs: `extra` is the package's extra.
std::string FindPython(std::string_view command, std::string_view extra);

// Becomes `words`; returns only when they cannot be run, after a message on stderr.
void BecomeProgram(const std::vector<std::string>& words);

// Runs `words` with `input` on its standard input. Its exit code, or -1 when it cannot be run.
int RunProgram(const std::vector<std::string>& words, std::string_view input);

}  // namespace terrace::cli
