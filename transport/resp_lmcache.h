// What LMCache's client needs of a store when a value is missing. It reads the header of the value
// it expects, "$<length>\r\n", and nothing shorter ever wakes it: the nil of Redis leaves the
// connection stuck. An error line of the same length is understood as a failure of that one GET.
// So the number of digits of the length has to be guessed: keys of one model and group have values
// of one size, and a client asks EXISTS or has stored some before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>

namespace terrace {

class RespLmcacheSizes {
 public:
  void Seen(std::string_view key, uint64_t bytes);
  // "-MISS___" and so on, with its line end.
  std::string MissLine(std::string_view key) const;

 private:
  struct Group {
    std::string name;
    uint64_t bytes;
  };
  static std::string_view GroupOf(std::string_view key);

  std::deque<Group> groups_;       // few: models and their groups
  uint64_t last_bytes_ = 1 << 20;  // of any
};

}  // namespace terrace
