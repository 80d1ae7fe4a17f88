#include "daemon/prefetch/request_book.h"

namespace terrace {

RequestBook::Number RequestBook::FindOrAdd(SessionId session, uint64_t request_id) {
  const auto [place, added] = sessions_[session].by_request_id.try_emplace(request_id, last_ + 1);
  if (!added) return place->second;
  Request& request = requests_[++last_];
  request.session = session;
  request.request_id = request_id;
  by_lapse_.insert({request.lapses_us, last_});
  return last_;
}

RequestBook::Number RequestBook::Find(SessionId session, uint64_t request_id) const {
  const auto book = sessions_.find(session);
  if (book == sessions_.end()) return 0;
  const auto found = book->second.by_request_id.find(request_id);
  return found == book->second.by_request_id.end() ? 0 : found->second;
}

bool RequestBook::Belongs(Number number, SessionId session) const {
  const auto found = requests_.find(number);
  return found != requests_.end() && found->second.session == session;
}

uint64_t RequestBook::KeysBeside(SessionId session, Number number, HintSource source) const {
  return sessions_.at(session).keys -
         requests_.at(number).key_heads[static_cast<size_t>(source)].size();
}

std::vector<uint64_t> RequestBook::Announce(Number number, HintSource source,
                                            std::vector<uint64_t> key_heads, uint64_t lapses_us) {
  Request& request = requests_.at(number);
  by_lapse_.erase({request.lapses_us, number});
  request.lapses_us = lapses_us;
  by_lapse_.insert({lapses_us, number});
  std::vector<uint64_t>& heads = request.key_heads[static_cast<size_t>(source)];
  uint64_t& keys = sessions_.at(request.session).keys;
  keys += key_heads.size();
  keys -= heads.size();
  heads.swap(key_heads);
  return key_heads;
}

std::vector<uint64_t> RequestBook::Take(Number number) {
  const auto found = requests_.find(number);
  if (found == requests_.end()) return {};
  const Request& request = found->second;
  std::vector<uint64_t> all;
  for (const auto& heads : request.key_heads) all.insert(all.end(), heads.begin(), heads.end());
  const auto book = sessions_.find(request.session);
  book->second.keys -= all.size();
  book->second.by_request_id.erase(request.request_id);
  if (book->second.by_request_id.empty()) sessions_.erase(book);
  by_lapse_.erase({request.lapses_us, number});
  requests_.erase(found);
  return all;
}

std::vector<RequestBook::Number> RequestBook::RequestsOf(SessionId session) const {
  std::vector<Number> numbers;
  const auto book = sessions_.find(session);
  if (book == sessions_.end()) return numbers;
  for (const auto& [request_id, number] : book->second.by_request_id) numbers.push_back(number);
  return numbers;
}

RequestBook::Number RequestBook::Lapsed(uint64_t now_us) const {
  if (by_lapse_.empty() || by_lapse_.begin()->first > now_us) return 0;
  return by_lapse_.begin()->second;
}

}  // namespace terrace
