// One client of the RESP server: reads requests, moves the bytes of values, writes replies. One
// command at a time, so that replies keep their order and memory its bounds: a pipeline waits in
// the socket. RESP thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "transport/resp_host.h"
#include "transport/resp_parser.h"

namespace terrace {

class RespConnection {
 public:
  // Owns the descriptor, a nonblocking socket.
  RespConnection(RespHost& host, uint64_t id, int fd);
  ~RespConnection();
  RespConnection(const RespConnection&) = delete;
  RespConnection& operator=(const RespConnection&) = delete;

  // Does what can be done without waiting, up to a fair share.
  enum class Next : uint8_t { kWait, kAgain, kClosed };
  Next Drive();
  // A time given to RespHost::WakeAfter is over. Drive() next.
  void Woken();
  void Readable() { readable_ = true; }
  void Writable() { writable_ = true; }
  // Whether it is in the middle of something and has not moved for so long.
  bool Stalled(uint64_t now_us, uint64_t timeout_us) const;

 private:
  enum class Step : uint8_t {
    kCommand,    // reads a command
    kAsked,      // waits for the loop
    kRoom,       // waits until there may be room, then asks again
    kReceiving,  // a value into its room
    kDropping,   // a value that nobody wants
    kClosing,    // once everything is sent
  };
  // How reading went: there was something; nothing now; the client is gone.
  enum class Input : uint8_t { kSome, kNone, kGone };

  // resp_connection.cc
  Input ReadMore();
  Input Received(ssize_t bytes);
  bool ReadCommand();
  bool Receive();
  bool Drop();
  // False when something is left to send, for Unsent() to say why.
  bool Flush();
  Next Unsent() const;
  void Sent(size_t bytes);
  bool Fail();
  void Part();
  bool Output() const { return head_at_ < head_.size() || sending_; }
  void StartValue();
  void UseRoom(RespRoom room);
  void AskForRoom();
  void GotRoom(RespRoom room);
  void GotSpare(RespRoom room, uint64_t bytes);
  void WatchSpare();
  void GiveSpareBack();
  void DropValue(std::string error);
  void WakeFrom(uint64_t bytes);
  void EndValue();
  // Whether the answer is to wait for room and ask once more, for as long as a client may wait.
  bool AskAgain(const absl::Status& status, uint32_t after_ms);
  void AskForValue(std::string key);
  void GotValue(RespValue value);
  void Missed();
  void EndSend();
  void NextValue();

  // resp_commands.cc
  void Dispatch();
  void Run(const std::string& name, std::vector<std::string> args);
  bool RunLocal(const std::string& name, const std::vector<std::string>& args);
  void Auth(const std::vector<std::string>& args);
  bool CheckPassword(std::string_view user, std::string_view password);
  void Hello(const std::vector<std::string>& args);
  void Client(const std::vector<std::string>& args);
  void Config(const std::vector<std::string>& args);
  void Exists(std::vector<std::string> keys);
  void Remove(std::vector<std::string> keys);
  void AskFacts(bool info);
  std::string Info(const RespFacts& facts) const;
  void Error(std::string_view text);

  RespHost& host_;
  const uint64_t id_;
  const int fd_;
  RespParser parser_;
  Step step_ = Step::kCommand;
  bool readable_ = true, writable_ = true;
  bool gone_ = false;
  bool authenticated_;
  int protocol_ = 2;
  std::string client_name_;
  uint64_t moved_us_;  // when bytes last moved
  uint64_t budget_ = 0;

  std::string in_;  // read and not used
  size_t in_at_ = 0;
  size_t read_bytes_;

  // To be sent: head_, then, if sending_, the value's bytes and a line end.
  std::string head_;
  size_t head_at_ = 0;
  bool sending_ = false;
  RespValue value_;
  uint64_t value_sent_ = 0;  // with the line end

  // The value that is being received.
  RespRoom room_;
  // Room for one more value as long as the last one, reserved as that was committed: who stores one
  // value after the other waits for the loop once a value. Given back when it is not used soon.
  RespRoom spare_;
  uint64_t spare_bytes_ = 0, spare_since_us_ = 0;
  uint64_t spare_wake_us_ = 0;  // when Woken() comes for it; 0: it does not
  uint64_t left_ = 0, taken_ = 0;
  uint32_t crc_ = 0;
  int wake_bytes_ = 1;         // that have to be there for the socket to be readable
  std::string command_error_;  // what the command is answered, its values being dropped

  uint64_t asked_since_us_ = 0;    // of what waits for room
  uint64_t retry_us_ = 0;          // in step kRoom: when Woken() comes for it
  std::vector<std::string> keys_;  // of GET and MGET
  size_t next_key_ = 0;
  bool array_ = false;  // they are MGET's
};

}  // namespace terrace
