#include "daemon/value_index.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "config/object_key.h"
#include "daemon/catalog.h"

namespace terrace {
namespace {

constexpr uint16_t kTenant = 1;

ObjectKey KeyOf(const char* name) { return OpaqueKey(Salt{}, Fingerprint{}, name); }

ObjectId Add(Catalog& catalog, const ObjectKey& key, uint16_t tenant, uint32_t fingerprint) {
  const ObjectId id = catalog.Insert(key);
  Entry& entry = catalog.at(id);
  entry.tenant = tenant;
  entry.fingerprint = fingerprint;
  entry.payload_units = 2;
  catalog.LinkToParent(id);
  return id;
}

TEST(ValueIndex, FollowsTheCatalog) {
  Catalog catalog;
  ValueIndex index;
  const uint32_t values = catalog.InternFingerprint(Fingerprint{1});
  const uint32_t others = catalog.InternFingerprint(Fingerprint{2});
  const ObjectId before = Add(catalog, KeyOf("before"), kTenant, values);
  Add(catalog, KeyOf("of another kind"), kTenant, others);
  catalog.Observe(&index, kTenant, {values});
  EXPECT_EQ(index.Find(KeyOf("before")), 2 * kPartAlignment);
  const ObjectId after = Add(catalog, KeyOf("after"), kTenant, values);
  Add(catalog, KeyOf("of another tenant"), kTenant + 1, values);
  EXPECT_EQ(index.Find(KeyOf("after")), 2 * kPartAlignment);
  EXPECT_FALSE(index.Find(KeyOf("of another kind")));
  EXPECT_FALSE(index.Find(KeyOf("of another tenant")));
  const ObjectId reserved = catalog.Insert(KeyOf("reserved"));
  EXPECT_FALSE(index.Find(KeyOf("reserved")));
  catalog.Free(reserved);
  catalog.Unindex(before);  // removed while it is leased
  catalog.Free(after);
  EXPECT_FALSE(index.Find(KeyOf("before")));
  EXPECT_FALSE(index.Find(KeyOf("after")));
  catalog.Observe(nullptr, kTenant, {});
}

TEST(ValueIndex, AReplacementIsNeverAbsent) {
  Catalog catalog;
  ValueIndex index;
  const uint32_t values = catalog.InternFingerprint(Fingerprint{1});
  catalog.Observe(&index, kTenant, {values});
  ObjectId id = Add(catalog, KeyOf("k"), kTenant, values);
  std::atomic<bool> stop = false;
  std::atomic<int> looks = 0, absent = 0;
  std::thread reader([&] {
    while (!stop) {
      absent += !index.Find(KeyOf("k"));
      ++looks;
    }
  });
  while (looks < 1000) {
    const ValueIndex::AtOnce at_once(index);
    catalog.Free(id);
    id = Add(catalog, KeyOf("k"), kTenant, values);
  }
  stop = true;
  reader.join();
  EXPECT_EQ(absent, 0);
}

}  // namespace
}  // namespace terrace
