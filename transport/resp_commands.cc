// What the RESP server answers to each command.
#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "transport/resp_connection.h"
#include "transport/resp_reply.h"

namespace terrace {
namespace {

struct Arity {
  std::string_view name;
  size_t min, max;  // with the name
};
constexpr size_t kAny = SIZE_MAX;
constexpr std::array<Arity, 19> kCommands = {{
    {"AUTH", 2, 3},    {"CLIENT", 2, kAny}, {"COMMAND", 1, kAny}, {"CONFIG", 2, kAny},
    {"DBSIZE", 1, 1},  {"DEL", 2, kAny},    {"ECHO", 2, 2},       {"EXISTS", 2, kAny},
    {"GET", 2, 2},     {"HELLO", 1, kAny},  {"INFO", 1, kAny},    {"MGET", 2, kAny},
    {"MSET", 3, kAny}, {"PING", 1, 2},      {"QUIT", 1, 1},       {"SELECT", 2, 2},
    {"SET", 3, kAny},  {"UNLINK", 2, kAny}, {"RESET", 1, 1},
}};

std::string UpperCase(std::string text) {
  for (char& c : text) {
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  }
  return text;
}

std::string LowerCase(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

// Takes as long for a wrong password as for the right one.
bool Same(std::string_view given, std::string_view wanted) {
  uint8_t differs = given.size() != wanted.size();
  for (size_t i = 0; i < given.size(); ++i) {
    differs |= static_cast<uint8_t>(given[i] ^ wanted[wanted.empty() ? 0 : i % wanted.size()]);
  }
  return differs == 0;
}

}  // namespace

void RespConnection::Error(std::string_view text) {
  ++host_.stats().errors;
  RespReply(head_).Error(text);
}

// The parser has a whole command.
void RespConnection::Dispatch() {
  if (parser_.args().empty()) return;
  const std::string name = parser_.name();
  const bool streamed = (name == "SET" || name == "MSET") && !parser_.is_inline();
  const auto command = std::find_if(kCommands.begin(), kCommands.end(),
                                    [&](const Arity& known) { return known.name == name; });
  ++host_.stats().commands;
  const std::string error = std::exchange(command_error_, {});
  const size_t count = parser_.announced();
  if (!error.empty()) {
    ++host_.stats().sets_refused;
    const bool evicted_at_once = host_.options().lmcache && error.starts_with("OOM ");
    evicted_at_once ? RespReply(head_).Simple("OK") : Error(error);
  } else if (command == kCommands.end()) {
    Error(absl::StrCat("ERR unknown command '", parser_.args()[0].substr(0, 128), "'"));
  } else if (count < command->min || count > command->max) {
    Error(absl::StrCat("ERR wrong number of arguments for '", LowerCase(name), "' command"));
  } else if (streamed) {
    RespReply(head_).Simple("OK");
  } else {
    Run(name, parser_.TakeArgs());
  }
}

void RespConnection::Run(const std::string& name, std::vector<std::string> args) {
  if (name == "AUTH") return Auth(args);
  if (name == "HELLO") return Hello(args);
  if (name == "QUIT") {
    RespReply(head_).Simple("OK");
    step_ = Step::kClosing;
    return;
  }
  if (!authenticated_) return Error("NOAUTH Authentication required.");
  if (name == "SET" || name == "MSET") {  // inline: the same again, in the form that is streamed
    std::string again;
    RespReply reply(again);
    reply.Array(args.size());
    for (const std::string& arg : args) reply.Bulk(arg);
    in_.insert(in_at_, again);
    return;
  }
  if (RunLocal(name, args)) return;
  if (name == "DBSIZE" || name == "INFO") return AskFacts(name == "INFO");
  args.erase(args.begin());
  if (name == "GET" || name == "MGET") {
    array_ = name == "MGET";
    if (array_) RespReply(head_).Array(args.size());
    keys_ = std::move(args);
    next_key_ = 0;
    asked_since_us_ = host_.now_us();
    AskForValue(keys_[0]);
    return;
  }
  name == "EXISTS" ? Exists(std::move(args)) : Remove(std::move(args));
}

bool RespConnection::RunLocal(const std::string& name, const std::vector<std::string>& args) {
  RespReply reply(head_);
  if (name == "PING") {
    args.size() == 2 ? reply.Bulk(args[1]) : reply.Simple("PONG");
  } else if (name == "ECHO") {
    reply.Bulk(args[1]);
  } else if (name == "SELECT") {
    args[1] == "0" ? reply.Simple("OK") : Error("ERR DB index is out of range");
  } else if (name == "RESET") {
    protocol_ = 2;
    client_name_.clear();
    authenticated_ = host_.options().password.empty();
    reply.Simple("RESET");
  } else if (name == "COMMAND") {
    const bool count = args.size() > 1 && UpperCase(args[1]) == "COUNT";
    count ? reply.Integer(kCommands.size()) : reply.Array(0);
  } else if (name == "CLIENT") {
    Client(args);
  } else if (name == "CONFIG") {
    Config(args);
  } else {
    return false;
  }
  return true;
}

bool RespConnection::CheckPassword(std::string_view user, std::string_view password) {
  const std::string& wanted = host_.options().password;
  if (user == "default" && !wanted.empty() && Same(password, wanted)) {
    authenticated_ = true;
    return true;
  }
  Error(wanted.empty() ? "ERR AUTH <password> called without any password configured"
                       : "WRONGPASS invalid username-password pair or user is disabled.");
  return false;
}

void RespConnection::Auth(const std::vector<std::string>& args) {
  const std::string_view user = args.size() == 3 ? std::string_view(args[1]) : "default";
  if (CheckPassword(user, args.back())) RespReply(head_).Simple("OK");
}

// HELLO [2|3 [AUTH user password] [SETNAME name]]
void RespConnection::Hello(const std::vector<std::string>& args) {
  int protocol = protocol_;
  if (args.size() > 1) {
    if (args[1] != "2" && args[1] != "3") return Error("NOPROTO unsupported protocol version");
    protocol = args[1][0] - '0';
  }
  for (size_t i = 2; i < args.size();) {
    const std::string option = UpperCase(args[i]);
    if (option == "AUTH" && i + 2 < args.size()) {
      if (!CheckPassword(args[i + 1], args[i + 2])) return;
      i += 3;
    } else if (option == "SETNAME" && i + 1 < args.size()) {
      client_name_ = args[i + 1];
      i += 2;
    } else {
      return Error(absl::StrCat("ERR syntax error in HELLO option '", args[i].substr(0, 64), "'"));
    }
  }
  if (!authenticated_) return Error("NOAUTH HELLO must be called with the client authenticated");
  protocol_ = protocol;
  RespReply reply(head_);
  reply.Map(7, protocol_);
  reply.Bulk("server");
  reply.Bulk("redis");
  reply.Bulk("version");
  reply.Bulk("7.0.15");
  reply.Bulk("proto");
  reply.Integer(protocol_);
  reply.Bulk("id");
  reply.Integer(static_cast<int64_t>(id_));
  reply.Bulk("mode");
  reply.Bulk("standalone");
  reply.Bulk("role");
  reply.Bulk("master");
  reply.Bulk("modules");
  reply.Array(0);
}

void RespConnection::Client(const std::vector<std::string>& args) {
  const std::string what = UpperCase(args[1]);
  RespReply reply(head_);
  if (what == "SETNAME" && args.size() == 3) {
    client_name_ = args[2];
    reply.Simple("OK");
  } else if (what == "GETNAME") {
    client_name_.empty() ? reply.Nil(protocol_) : reply.Bulk(client_name_);
  } else if (what == "ID") {
    reply.Integer(static_cast<int64_t>(id_));
  } else if (what == "SETINFO") {
    reply.Simple("OK");
  } else {
    Error("ERR CLIENT knows SETNAME, GETNAME, SETINFO and ID");
  }
}

// What redis-benchmark asks for.
void RespConnection::Config(const std::vector<std::string>& args) {
  if (UpperCase(args[1]) != "GET" || args.size() != 3) {
    return Error("ERR CONFIG knows GET of one name: the configuration is terraced's own");
  }
  const std::string name = LowerCase(args[2]);
  RespReply reply(head_);
  const bool save = name == "save", append = name == "appendonly";
  reply.Map(save || append ? 1 : 0, protocol_);
  if (save || append) {
    reply.Bulk(name);
    reply.Bulk(save ? "" : "no");
  }
}

// Answered here: what is held for the GET behind it is the loop's, but nobody waits for that.
void RespConnection::Exists(std::vector<std::string> keys) {
  std::vector<std::string> found;
  for (std::string& key : keys) {
    const int64_t bytes = host_.service().Exists(key);
    if (bytes < 0) continue;
    if (host_.options().lmcache) host_.lmcache_sizes().Seen(key, bytes);
    found.push_back(std::move(key));
  }
  RespReply(head_).Integer(static_cast<int64_t>(found.size()));
  if (found.empty()) return;
  host_.Tell([found = std::move(found)](RespService& service) {
    for (const std::string& key : found) service.Hold(key);
  });
}

void RespConnection::Remove(std::vector<std::string> keys) {
  step_ = Step::kAsked;
  host_.Ask(id_, [keys = std::move(keys)](RespService& service, RespHost::Reply reply) {
    int64_t removed = 0;
    for (const std::string& key : keys) removed += service.Remove(key);
    reply([removed](RespConnection* connection) {
      if (connection == nullptr) return;
      RespReply(connection->head_).Integer(removed);
      connection->step_ = Step::kCommand;
    });
  });
}

void RespConnection::AskFacts(bool info) {
  step_ = Step::kAsked;
  host_.Ask(id_, [info](RespService& service, RespHost::Reply reply) {
    reply([info, facts = service.Facts()](RespConnection* connection) {
      if (connection == nullptr) return;
      RespReply out(connection->head_);
      info ? out.Bulk(connection->Info(facts)) : out.Integer(facts.objects);
      connection->step_ = Step::kCommand;
    });
  });
}

std::string RespConnection::Info(const RespFacts& facts) const {
  const RespStats& stats = host_.stats();
  std::string text = absl::StrCat(
      "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\nterrace_version:",
      host_.options().version, "\r\n\r\n# Clients\r\nconnected_clients:", stats.clients.load(),
      "\r\nmaxclients:", host_.options().max_clients,
      "\r\n\r\n# Memory\r\nused_memory:", facts.used_bytes, "\r\nmaxmemory:", facts.capacity_bytes,
      "\r\n\r\n# Stats\r\n");
  absl::StrAppend(&text, "total_commands_processed:", stats.commands.load(),
                  "\r\nkeyspace_hits:", stats.gets.load() - stats.get_misses.load(),
                  "\r\nkeyspace_misses:", stats.get_misses.load(), "\r\n");
  for (const auto& [name, value] : stats.List()) absl::StrAppend(&text, name, ":", value, "\r\n");
  absl::StrAppend(&text, "\r\n# Keyspace\r\ndb0:keys=", facts.objects, ",expires=0,avg_ttl=0\r\n");
  return text;
}

}  // namespace terrace
