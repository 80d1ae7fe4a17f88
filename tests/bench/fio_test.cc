#include "bench/fio.h"

#include <gtest/gtest.h>

#include <string>

namespace terrace::bench {
namespace {

// As fio 3.33 writes it, less what nobody reads.
constexpr char kTwoJobs[] = R"({
  "fio version" : "fio-3.33",
  "timestamp" : 1732390000,
  "jobs" : [
    {
      "jobname" : "read",
      "groupid" : 0,
      "error" : 0,
      "job options" : { "name" : "read", "rw" : "randread" },
      "read" : {
        "io_bytes" : 536870912,
        "io_kbytes" : 524288,
        "bw_bytes" : 1516584497,
        "runtime" : 354,
        "total_ios" : 512,
        "clat_ns" : {
          "min" : 1, "max" : 90000000, "mean" : 4.5,
          "percentile" : { "50.000000" : 4112384, "99.000000" : 59506688, "99.900000" : 70778880 }
        }
      },
      "write" : {
        "io_bytes" : 0, "bw_bytes" : 0, "runtime" : 0, "total_ios" : 0,
        "clat_ns" : { "min" : 0, "max" : 0, "mean" : 0.0, "stddev" : 0.0, "N" : 0 }
      },
      "job_runtime" : 2000,
      "usr_cpu" : 8.5,
      "sys_cpu" : 16.5
    },
    {
      "jobname" : "write",
      "error" : 0,
      "read" : { "io_bytes" : 0, "runtime" : 0, "total_ios" : 0 },
      "write" : {
        "io_bytes" : 1073741824, "runtime" : 1001, "total_ios" : 256,
        "clat_ns" : { "percentile" : { "99.000000" : 1000000 } }
      },
      "job_runtime" : 1000, "usr_cpu" : 0.0, "sys_cpu" : 1.0
    }
  ]
})";

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(ParseFio, ReadsTheFiguresOfEveryJob) {
  const auto jobs = ParseFio(kTwoJobs);
  ASSERT_TRUE(jobs.ok()) << jobs.status();
  ASSERT_EQ(jobs->size(), 2u);
  const FioJob& read = jobs->front();
  EXPECT_EQ(read.name, "read");
  EXPECT_EQ(read.read.bytes, 536870912u);
  EXPECT_EQ(read.read.requests, 512u);
  EXPECT_DOUBLE_EQ(read.read.seconds, 0.354);
  EXPECT_DOUBLE_EQ(read.read.p99_clat_seconds, 0.059506688);
  EXPECT_EQ(read.write.bytes, 0u);
  EXPECT_EQ(read.write.p99_clat_seconds, 0);
  EXPECT_DOUBLE_EQ(read.cpu_seconds, 0.5);  // a quarter of two seconds
  EXPECT_EQ(jobs->back().name, "write");
  EXPECT_EQ(jobs->back().write.bytes, 1073741824u);
  EXPECT_DOUBLE_EQ(jobs->back().write.seconds, 1.001);
}

TEST(ParseFio, StepsOverWarningsBeforeTheObject) {
  const auto jobs = ParseFio(std::string("fio: {odd} clock, using another\nnote: x\n") + kTwoJobs);
  ASSERT_TRUE(jobs.ok()) << jobs.status();
  EXPECT_EQ(jobs->size(), 2u);
}

TEST(ParseFio, SaysWhichMemberIsMissing) {
  for (const char* member : {"io_bytes", "total_ios", "runtime", "clat_ns", "99.000000", "usr_cpu",
                             "job_runtime", "error", "write"}) {
    const auto jobs =
        ParseFio(Replaced(kTwoJobs, "\"" + std::string(member) + "\" :", "\"something\" :"));
    EXPECT_EQ(jobs.status().code(), absl::StatusCode::kInvalidArgument) << member;
    EXPECT_NE(std::string(jobs.status().message()).find(member), std::string::npos)
        << jobs.status();
  }
}

TEST(ParseFio, RefusesFiguresOfAnotherType) {
  EXPECT_FALSE(ParseFio(Replaced(kTwoJobs, "536870912", "\"536870912\"")).ok());
  EXPECT_FALSE(ParseFio(Replaced(kTwoJobs, "\"jobname\" : \"read\"", "\"jobname\" : 3")).ok());
}

TEST(ParseFio, AJobThatFailedIsAnError) {
  const auto jobs = ParseFio(Replaced(kTwoJobs, "\"error\" : 0", "\"error\" : 28"));
  EXPECT_EQ(jobs.status().code(), absl::StatusCode::kInternal);
  EXPECT_NE(std::string(jobs.status().message()).find("28"), std::string::npos);
}

TEST(ParseFio, RefusesWhatIsGarbledOrCutShort) {
  const std::string whole = kTwoJobs;
  for (const std::string& text : {std::string(), std::string("fio: failed\n"), std::string("{}"),
                                  std::string("{\"jobs\": []}"), std::string("{\"jobs\": [3]}"),
                                  whole + "}", Replaced(whole, ":", "")}) {
    EXPECT_FALSE(ParseFio(text).ok()) << text;
  }
  for (size_t bytes = 0; bytes + 1 < whole.size(); bytes += 7) {
    EXPECT_FALSE(ParseFio(whole.substr(0, bytes)).ok()) << bytes;
  }
}

TEST(RunFio, RunsAJobAndReadsItsFigures) {
  Context context;
  context.scratch_dir = testing::TempDir();
  const std::string file = context.scratch_dir + "/fio_test.file";
  ASSERT_TRUE(RunFio(context, {"--name=write", "--filename=" + file, "--ioengine=psync",
                               "--rw=write", "--bs=64k", "--size=1M"})
                  .ok());
  const auto jobs = RunFio(context, {"--name=read", "--filename=" + file, "--ioengine=psync",
                                     "--rw=read", "--bs=64k", "--size=1M"});
  ASSERT_TRUE(jobs.ok()) << jobs.status();
  EXPECT_EQ(jobs->front().read.bytes, 1u << 20);
  EXPECT_EQ(jobs->front().read.requests, 16u);
  std::remove(file.c_str());
}

TEST(RunFio, SaysWhatFioSaid) {
  Context context;
  context.scratch_dir = testing::TempDir();
  const auto jobs = RunFio(context, {"--name=x", "--rw=sideways"});
  ASSERT_FALSE(jobs.ok());
  EXPECT_NE(std::string(jobs.status().message()).find("sideways"), std::string::npos)
      << jobs.status();
}

}  // namespace
}  // namespace terrace::bench
