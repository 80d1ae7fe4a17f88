#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

#include "config/machine.h"
#include "config/options.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;

// Sets one environment variable for the life of a test.
class ScopedEnvironment {
 public:
  ScopedEnvironment(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    if (value == nullptr) {
      unsetenv(name);
    } else {
      setenv(name, value, 1);
    }
  }
  ~ScopedEnvironment() {
    if (old_) {
      setenv(name_, old_->c_str(), 1);
    } else {
      unsetenv(name_);
    }
  }

 private:
  const char* name_;
  std::optional<std::string> old_;
};

// Absolute everywhere, so that a test changes the one thing it is about.
Options Concrete() {
  Options options;
  options.server.socket_path = "/tmp/t/s.sock";
  options.server.state_dir = "/tmp/t";
  options.host.capacity = Size::Bytes(96 * kMiB);
  options.nvme.capacity = Size::Bytes(512 * kMiB);
  return options;
}

std::string ErrorOf(const Options& options) {
  const absl::StatusOr<Options> resolved = ResolveOptions(options);
  if (resolved.ok()) return "accepted";
  EXPECT_EQ(resolved.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(resolved.status().message());
}

TEST(ResolveOptions, NoConfigurationWorks) {
  ScopedEnvironment state("XDG_STATE_HOME", ::testing::TempDir().c_str());
  Options defaults;
  defaults.server.state_dir = ::testing::TempDir() + "state";
  defaults.nvme.segment_size = Size::Bytes(4 * kMiB);  // a nearly full disk is not the subject
  const absl::StatusOr<Options> resolved = ResolveOptions(defaults);
  ASSERT_TRUE(resolved.ok()) << resolved.status();
  EXPECT_EQ(resolved->host.capacity, Size::Bytes(Size::Percent(25).Of(*MemoryLimitBytes())));
  EXPECT_FALSE(resolved->nvme.capacity.is_percent());
  EXPECT_EQ(resolved->nvme.directory, defaults.server.state_dir + "/nvme");
  ASSERT_EQ(resolved->tenants.size(), 1u);
  EXPECT_EQ(resolved->tenants[0].name, "default");
  EXPECT_EQ(resolved->tenants[0].uids, std::vector<uint32_t>{geteuid()});
  EXPECT_EQ(resolved->tenants[0].host_capacity, resolved->host.capacity);
}

TEST(ResolveOptions, ResolvingTwiceChangesNothing) {
  const absl::StatusOr<Options> once = ResolveOptions(Concrete());
  ASSERT_TRUE(once.ok()) << once.status();
  EXPECT_EQ(*ResolveOptions(*once), *once);
  EXPECT_EQ(*ParseOptions(ToToml(*once), "effective"), *once);
}

TEST(ResolveOptions, TheSocketFollowsTheRuntimeDirectory) {
  Options options = Concrete();
  options.server.socket_path.clear();
  {
    ScopedEnvironment runtime("XDG_RUNTIME_DIR", "/run/user/1000");
    EXPECT_EQ(ResolveOptions(options)->server.socket_path, "/run/user/1000/terrace/terraced.sock");
    EXPECT_EQ(DefaultSocketPath(), "/run/user/1000/terrace/terraced.sock");
  }
  for (const char* unusable : {static_cast<const char*>(nullptr), "", "relative"}) {
    ScopedEnvironment runtime("XDG_RUNTIME_DIR", unusable);
    EXPECT_EQ(ResolveOptions(options)->server.socket_path, "/run/terrace/terraced.sock");
  }
  ScopedEnvironment runtime("XDG_RUNTIME_DIR", ("/" + std::string(120, 'r')).c_str());
  EXPECT_THAT(ErrorOf(options), HasSubstr("server.socket_path"));
}

TEST(ResolveOptions, TheStateDirectoryFollowsTheUser) {
  Options options = Concrete();
  options.server.state_dir.clear();
  ScopedEnvironment home("HOME", "/home/u");
  ScopedEnvironment state("XDG_STATE_HOME", nullptr);
  const std::string expected = geteuid() == 0 ? "/var/lib/terrace" : "/home/u/.local/state/terrace";
  EXPECT_EQ(ResolveOptions(options)->server.state_dir, expected);
}

TEST(ResolveOptions, TenantsShareWhatIsLeftEqually) {
  Options options = Concrete();
  options.tenants.resize(3);
  options.tenants[0].host_capacity = Size::Percent(50);
  const absl::StatusOr<Options> resolved = ResolveOptions(options);
  ASSERT_TRUE(resolved.ok()) << resolved.status();
  EXPECT_EQ(resolved->tenants[0].host_capacity, Size::Bytes(48 * kMiB));
  EXPECT_EQ(resolved->tenants[1].host_capacity, Size::Bytes(24 * kMiB));
  EXPECT_EQ(resolved->tenants[2].host_capacity, Size::Bytes(24 * kMiB));
}

TEST(ResolveOptions, PartsBeyondTheWholeAreRefused) {
  Options options = Concrete();
  options.tenants.resize(2);
  options.tenants[0].host_capacity = Size::Bytes(64 * kMiB);
  options.tenants[1].host_capacity = Size::Bytes(40 * kMiB);
  EXPECT_THAT(ErrorOf(options), HasSubstr("tenants[1].host_capacity"));
  options.tenants[1].host_capacity.reset();
  options.tenants[0].host_capacity = Size::Bytes(95 * kMiB);
  EXPECT_THAT(ErrorOf(options), HasSubstr("host.capacity"));
}

TEST(ResolveOptions, AnNvmeTierNeedsTwoSegmentsUnlessItIsOff) {
  Options options = Concrete();
  options.nvme.capacity = Size::Bytes(100 * kMiB);
  EXPECT_THAT(ErrorOf(options), HasSubstr("nvme.capacity"));
  options.nvme.enabled = false;
  EXPECT_TRUE(ResolveOptions(options).ok());
}

TEST(ResolveOptions, AnUnusableNvmeDirectoryIsNamed) {
  Options options = Concrete();
  options.nvme.directory = "/proc/version/nvme";
  options.nvme.capacity = Size::Percent(20);
  EXPECT_THAT(ErrorOf(options), HasSubstr("nvme.directory"));
}

TEST(ResolveOptions, TenantsTakeThePlacementTheyDoNotSet) {
  Options options = Concrete();
  options.placement.limits[0].floor = Size::Percent(25);
  options.placement.limits[1].ceiling = Size::Bytes(8 * kMiB);
  options.tenants = {{.name = "a", .uids = {1}}, {.name = "b", .uids = {2}}};
  options.tenants[1].limits[0].floor = Size::Percent(50);
  const auto resolved = ResolveOptions(options);
  ASSERT_TRUE(resolved.ok()) << resolved.status();
  const KindLimits a = resolved->tenants[0].Limits(), b = resolved->tenants[1].Limits();
  EXPECT_EQ(a[0].floor, Size::Percent(25));  // of whatever the tenant has
  EXPECT_EQ(b[0].floor, Size::Percent(50));
  EXPECT_EQ(a[1].ceiling, Size::Bytes(8 * kMiB));
  EXPECT_EQ(a[2].ceiling, Size::Percent(100));
}

TEST(ResolveOptions, FloorsFitAndAreBelowTheirCeilings) {
  Options options = Concrete();
  options.placement.limits[0].floor = Size::Percent(60);
  options.placement.limits[3].floor = Size::Percent(40);
  EXPECT_EQ(ErrorOf(options), "accepted");
  options.placement.limits[2].floor = Size::Percent(1);
  EXPECT_THAT(ErrorOf(options), HasSubstr("tenants[0].opaque_floor"));
  options.placement.limits[2].floor = Size::Bytes(0);
  options.placement.limits[0].ceiling = Size::Bytes(4 * kMiB);
  EXPECT_THAT(ErrorOf(options), HasSubstr("tenants[0].kv_floor"));
  EXPECT_THAT(ErrorOf(options), HasSubstr("kv_ceiling (4MiB"));
}

}  // namespace
}  // namespace terrace
