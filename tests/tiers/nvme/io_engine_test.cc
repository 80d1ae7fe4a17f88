// Both engines against real files with O_DIRECT, and what happens where io_uring is forbidden.
#include "tiers/nvme/io_engine.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <set>
#include <thread>

#include "gmock/gmock.h"
#include "tests/tiers/nvme/nvme_fixture.h"
#include "tiers/nvme/limited_engine.h"
#include "tiers/nvme/system.h"

namespace terrace::nvme {
namespace {

using testing::HasSubstr;

constexpr uint64_t kBlock = 4096;

void Fill(uint8_t* bytes, uint64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (uint64_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(random());
}

class IoEngineTest : public testing::TestWithParam<EngineChoice> {
 protected:
  void SetUp() override {
    auto engine = MakeIoEngine(GetParam(), 16);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    fd_ = System::Real().Open(scratch_.path() + "/file", O_RDWR | O_CREAT | O_DIRECT);
    ASSERT_GE(fd_, 0);
  }
  void TearDown() override {
    if (fd_ >= 0) close(fd_);
  }

  // Submits one operation and returns its result.
  int64_t Run(IoOp::Kind kind, int fd, uint64_t offset, const std::vector<iovec>& buffers) {
    IoOp op;
    op.kind = kind;
    op.fd = fd;
    op.offset = offset;
    op.buffers = buffers.data();
    op.buffer_count = static_cast<int>(buffers.size());
    engine_->Submit(&op);
    std::vector<IoOp*> completed;
    engine_->Poll(true, completed);
    EXPECT_EQ(completed, std::vector<IoOp*>{&op});
    return op.result;
  }
  int64_t Write(uint64_t offset, uint8_t* bytes, uint64_t count) {
    return Run(IoOp::Kind::kWrite, fd_, offset, {{bytes, count}});
  }
  int64_t Read(uint64_t offset, uint8_t* bytes, uint64_t count) {
    return Run(IoOp::Kind::kRead, fd_, offset, {{bytes, count}});
  }

  TemporaryDirectory scratch_;
  std::unique_ptr<IoEngine> engine_;
  int fd_ = -1;
};

TEST_P(IoEngineTest, ReadsWhatWasWritten) {
  kernels::AlignedBuffer out(8 * kBlock), in(8 * kBlock);
  Fill(out.data(), 8 * kBlock, 1);
  EXPECT_EQ(Write(3 * kBlock, out.data(), 8 * kBlock), 8 * kBlock);
  EXPECT_EQ(Run(IoOp::Kind::kSync, fd_, 0, {}), 0);
  EXPECT_EQ(Read(3 * kBlock, in.data(), 8 * kBlock), 8 * kBlock);
  EXPECT_EQ(std::memcmp(in.data(), out.data(), 8 * kBlock), 0);
}

TEST_P(IoEngineTest, VectorsGatherAndScatterInOrder) {
  constexpr int kBuffers = 300;
  kernels::AlignedBuffer out(kBuffers * kBlock), in(kBuffers * kBlock);
  Fill(out.data(), out.size_bytes(), 2);
  std::vector<iovec> gather, scatter;
  for (uint64_t i = 0; i < kBuffers; ++i) {
    gather.push_back({out.data() + (kBuffers - 1 - i) * kBlock, kBlock});
    scatter.push_back({in.data() + (kBuffers - 1 - i) * kBlock, kBlock});
  }
  EXPECT_EQ(Run(IoOp::Kind::kWrite, fd_, 0, gather), kBuffers * kBlock);
  EXPECT_EQ(Run(IoOp::Kind::kRead, fd_, 0, scatter), kBuffers * kBlock);
  EXPECT_EQ(std::memcmp(in.data(), out.data(), out.size_bytes()), 0);
  // The first in the file is the last in memory.
  EXPECT_EQ(Read(0, in.data(), kBlock), kBlock);
  EXPECT_EQ(std::memcmp(in.data(), out.data() + (kBuffers - 1) * kBlock, kBlock), 0);
}

TEST_P(IoEngineTest, ReadsEndWithTheFile) {
  kernels::AlignedBuffer buffer(4 * kBlock);
  Fill(buffer.data(), 4 * kBlock, 3);
  ASSERT_EQ(Write(0, buffer.data(), 2 * kBlock), 2 * kBlock);
  EXPECT_EQ(Read(kBlock, buffer.data(), 4 * kBlock), kBlock);
  EXPECT_EQ(Read(2 * kBlock, buffer.data(), kBlock), 0);
  EXPECT_EQ(Read(1000 * kBlock, buffer.data(), kBlock), 0);
}

TEST_P(IoEngineTest, ErrorsAreNegativeErrno) {
  kernels::AlignedBuffer buffer(2 * kBlock);
  EXPECT_EQ(Run(IoOp::Kind::kRead, -1, 0, {{buffer.data(), kBlock}}), -EBADF);
  EXPECT_EQ(Run(IoOp::Kind::kWrite, -1, 0, {{buffer.data(), kBlock}}), -EBADF);
  EXPECT_EQ(Run(IoOp::Kind::kSync, -1, 0, {}), -EBADF);
  ASSERT_EQ(Write(0, buffer.data(), kBlock), kBlock);
  EXPECT_EQ(Read(0, buffer.data() + 1, kBlock), -EINVAL) << "O_DIRECT refuses what is not aligned";
}

TEST_P(IoEngineTest, ManyInFlightCompleteOnceEach) {
  constexpr uint64_t kOps = 200;  // far more than the depth it was made for
  kernels::AlignedBuffer out(kOps * kBlock), in(kOps * kBlock);
  Fill(out.data(), out.size_bytes(), 4);
  for (const IoOp::Kind kind : {IoOp::Kind::kWrite, IoOp::Kind::kRead}) {
    uint8_t* memory = kind == IoOp::Kind::kWrite ? out.data() : in.data();
    std::vector<IoOp> ops(kOps);
    std::vector<iovec> buffers(kOps);
    for (uint64_t i = 0; i < kOps; ++i) {
      buffers[i] = {memory + i * kBlock, kBlock};
      ops[i].kind = kind;
      ops[i].fd = fd_;
      ops[i].offset = (kOps - 1 - i) * kBlock;
      ops[i].buffers = &buffers[i];
      ops[i].buffer_count = 1;
      engine_->Submit(&ops[i]);
    }
    std::set<IoOp*> seen;
    while (seen.size() < kOps) {
      std::vector<IoOp*> completed;
      engine_->Poll(true, completed);
      ASSERT_FALSE(completed.empty()) << "nobody woke it";
      for (IoOp* op : completed) {
        EXPECT_TRUE(seen.insert(op).second);
        EXPECT_EQ(op->result, kBlock);
      }
    }
  }
  EXPECT_EQ(std::memcmp(in.data(), out.data(), out.size_bytes()), 0);
}

TEST_P(IoEngineTest, PollWithoutWaitReturnsAndKeepsWhatIsThere) {
  std::vector<IoOp*> completed;
  engine_->Poll(false, completed);
  EXPECT_TRUE(completed.empty());
  IoOp sync;
  sync.kind = IoOp::Kind::kSync;
  sync.fd = fd_;
  engine_->Submit(&sync);
  IoOp earlier;
  completed.push_back(&earlier);  // what was there stays, and is no completion
  engine_->Poll(true, completed);
  EXPECT_EQ(completed, (std::vector<IoOp*>{&earlier, &sync}));
}

TEST_P(IoEngineTest, WakeEndsTheCurrentWait) {
  std::thread waker([this] { engine_->Wake(); });
  std::vector<IoOp*> completed;
  engine_->Poll(true, completed);
  EXPECT_TRUE(completed.empty());
  waker.join();
}

TEST_P(IoEngineTest, WakeEndsTheNextWaitEvenAfterAPollWithoutOne) {
  for (int i = 0; i < 3; ++i) {
    engine_->Wake();
    engine_->Wake();
    std::vector<IoOp*> completed;
    engine_->Poll(false, completed);
    engine_->Poll(true, completed);  // would hang
    EXPECT_TRUE(completed.empty());
  }
}

TEST_P(IoEngineTest, NamesWhatItIs) {
  EXPECT_THAT(engine_->name(),
              HasSubstr(GetParam() == EngineChoice::kIoUring ? "io_uring" : "preadv2"));
}

INSTANTIATE_TEST_SUITE_P(Engines, IoEngineTest,
                         testing::Values(EngineChoice::kIoUring, EngineChoice::kThreads),
                         [](const auto& engine) {
                           return engine.param == EngineChoice::kIoUring ? "IoUring" : "Threads";
                         });

// Makes one system call of this process fail with EPERM from here on, as container runtimes do.
bool Forbid(uint32_t call) {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {std::size(code), code};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// What a process may do in which `call` is forbidden; its exit status names the step that failed.
int InTheSandbox(uint32_t call, const std::string& path) {
  if (!Forbid(call)) return 1;
  const auto chosen = MakeIoEngine(EngineChoice::kIoUring, 4);
  if (!absl::IsFailedPrecondition(chosen.status())) return 2;
  if (chosen.status().message().find("Operation not permitted") == absl::string_view::npos) {
    return 3;
  }
  auto engine = MakeIoEngine(EngineChoice::kAuto, 4);
  if (!engine.ok()) return 4;
  const std::string name = (*engine)->name();
  if (name.find("preadv2 on 4 threads (") != 0) return 5;
  if (name.find("Operation not permitted") == std::string::npos) return 6;
  kernels::AlignedBuffer buffer(kBlock);
  Fill(buffer.data(), kBlock, 5);
  const iovec vector = {buffer.data(), kBlock};
  IoOp op;
  op.kind = IoOp::Kind::kWrite;
  op.fd = System::Real().Open(path, O_RDWR | O_CREAT | O_DIRECT);
  op.buffers = &vector;
  op.buffer_count = 1;
  (*engine)->Submit(&op);
  std::vector<IoOp*> completed;
  (*engine)->Poll(true, completed);
  if (completed.size() != 1 || op.result != static_cast<int64_t>(kBlock)) return 7;
  return 0;
}

class ForbiddenTest : public testing::TestWithParam<uint32_t> {};

TEST_P(ForbiddenTest, ThreadsTakeOverAndSayWhy) {
  TemporaryDirectory scratch;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) _exit(InTheSandbox(GetParam(), scratch.path() + "/file"));
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0) << "the step that failed, see InTheSandbox";
}

INSTANTIATE_TEST_SUITE_P(Calls, ForbiddenTest,
                         testing::Values(uint32_t{SYS_io_uring_setup},
                                         uint32_t{SYS_io_uring_enter}));

TEST(LimitedEngine, ReadsTakeAtLeastTheTimeOfTheirBytesAndWritesNone) {
  TemporaryDirectory scratch;
  auto inner = MakeIoEngine(EngineChoice::kAuto, 16);
  ASSERT_TRUE(inner.ok()) << inner.status();
  constexpr uint64_t kRate = 16 << 20, kBytes = 256 << 10;  // 1/64 s each
  LimitedEngine engine(*std::move(inner), kRate);
  const int fd = System::Real().Open(scratch.path() + "/file", O_RDWR | O_CREAT | O_DIRECT);
  ASSERT_GE(fd, 0);
  kernels::AlignedBuffer written(kBytes), read(4 * kBytes);
  Fill(written.data(), kBytes, 1);
  const auto run = [&](IoOp::Kind kind, uint8_t* memory, int count) {
    std::vector<iovec> buffers;
    std::vector<IoOp> ops(count);
    for (int i = 0; i < count; ++i) buffers.push_back({memory + i * kBytes, kBytes});
    for (int i = 0; i < count; ++i) {
      ops[i].kind = kind;
      ops[i].fd = fd;
      ops[i].buffers = &buffers[i];
      ops[i].buffer_count = 1;
      engine.Submit(&ops[i]);
    }
    std::vector<IoOp*> completed;
    while (completed.size() < ops.size()) engine.Poll(true, completed);
    for (IoOp& op : ops) EXPECT_EQ(op.result, static_cast<int64_t>(kBytes));
  };
  run(IoOp::Kind::kWrite, written.data(), 1);
  const auto start = std::chrono::steady_clock::now();
  run(IoOp::Kind::kRead, read.data(), 4);
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(62));
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(std::memcmp(read.data() + i * kBytes, written.data(), kBytes), 0);
  }
  engine.Wake();  // ends the next wait, though nothing is under way
  std::vector<IoOp*> completed;
  engine.Poll(true, completed);
  EXPECT_TRUE(completed.empty());
  close(fd);
}

}  // namespace
}  // namespace terrace::nvme
