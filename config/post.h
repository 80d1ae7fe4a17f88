// How a worker thread hands a result to the loop thread. Callable from any thread, never blocks
// for long; the closure runs later, on the loop.
#pragma once

#include <functional>

#include "absl/functional/any_invocable.h"

namespace terrace {

using PostFn = std::function<void(absl::AnyInvocable<void()>)>;

}  // namespace terrace
