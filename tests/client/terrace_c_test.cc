// The C ABI, through libterrace.so as a binding uses it.
#include "client/terrace_c.h"

#include <gmock/gmock.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

extern "C" const char* VersionFromC(void);
extern "C" int32_t NullFromC(void);

namespace {

using testing::HasSubstr;
using testing::StartsWith;

class CAbiTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = "/var/tmp/terrace-c-XXXXXX";
    directory_ = mkdtemp(pattern.data());
    terrace_spawn_options options{};
    options.struct_size = sizeof options;
    options.directory = directory_.c_str();
    options.daemon_path = TERRACED_PATH;
    options.host_capacity_bytes = 16 << 20;
    options.nvme_capacity_bytes = 256 << 20;
    options.start_timeout_ms = options.call_timeout_ms = 60000;
    ASSERT_EQ(terrace_spawn(&options, &client_), TERRACE_OK) << terrace_last_error();
    ASSERT_EQ(Register("float16", &model_), TERRACE_OK) << terrace_last_error();
    for (uint32_t i = 0; i < 300; ++i) tokens_.push_back(i * 7);
  }
  void TearDown() override {
    terrace_model_free(model_);
    terrace_close(client_);
    std::filesystem::remove_all(directory_);
  }
  int32_t Register(const char* dtype, terrace_model** out, uint32_t heads = 2) {
    terrace_kv_geometry geometry{};
    geometry.struct_size = sizeof geometry;
    geometry.model_id = "c-test";
    geometry.dtype = dtype;
    geometry.order = "head_major";
    geometry.layers = 2;
    geometry.kv_heads = heads;
    geometry.head_dim = 8;
    return terrace_register_kv(client_, &geometry, out);
  }
  void StoreTokens() {
    terrace_store* store = nullptr;
    ASSERT_EQ(
        terrace_begin_store(client_, model_, tokens_.data(), tokens_.size(), nullptr, 0, 5, &store),
        TERRACE_OK)
        << terrace_last_error();
    ASSERT_EQ(terrace_store_chunk_count(store), 2u);
    for (size_t chunk = 0; chunk < 2; ++chunk) {
      terrace_store_chunk_info_t info{};
      ASSERT_EQ(terrace_store_chunk_info(store, chunk, &info), TERRACE_OK);
      ASSERT_EQ(info.needed, 1u);
      const std::vector<uint8_t> bytes(info.token_count * 32, static_cast<uint8_t>(chunk + 1));
      for (uint32_t part = 0; part < 4; ++part) {
        if (part == 2) {
          void* data = nullptr;
          size_t size = 0;
          ASSERT_EQ(terrace_store_buffer(store, chunk, 1, 0, &data, &size), TERRACE_OK);
          ASSERT_EQ(size, bytes.size());
          std::memcpy(data, bytes.data(), size);
        } else {
          ASSERT_EQ(terrace_store_write_rows(store, chunk, part / 2, part % 2, bytes.data(), 2,
                                             bytes.size() / 2, 0),
                    TERRACE_OK)
              << terrace_last_error();
        }
      }
    }
    terrace_commit_report report{};
    ASSERT_EQ(terrace_store_commit(store, &report), TERRACE_OK) << terrace_last_error();
    EXPECT_EQ(report.stored, 2u);
    EXPECT_EQ(report.why, TERRACE_OK);
    terrace_store_free(store);
  }

  std::string directory_;
  terrace_client* client_ = nullptr;
  terrace_model* model_ = nullptr;
  std::vector<uint32_t> tokens_;
};

TEST_F(CAbiTest, HintsByTokensAndByKeys) {
  StoreTokens();
  uint8_t keys[2 * TERRACE_KEY_BYTES] = {1};
  terrace_expected_read reads[2] = {};
  reads[0].struct_size = reads[1].struct_size = sizeof reads[0];
  reads[0].request_id = 1;
  reads[0].confidence = 1;
  reads[0].tokens = tokens_.data();
  reads[0].token_count = tokens_.size();
  reads[1].request_id = 2;
  reads[1].kind = TERRACE_HINT_EXPERTS;
  reads[1].confidence = 0.5f;
  reads[1].keys = keys;
  reads[1].key_count = 2;
  terrace_hint_report report{};
  ASSERT_EQ(terrace_hint(client_, model_, reads, 2, &report), TERRACE_OK) << terrace_last_error();
  EXPECT_EQ(report.accepted, 2u);
  EXPECT_EQ(report.refused, 0u);
  EXPECT_EQ(report.keys, 4u);
  EXPECT_EQ(report.why, TERRACE_OK);
  char* text = nullptr;
  ASSERT_EQ(terrace_status_json(client_, &text), TERRACE_OK);
  EXPECT_THAT(std::string(text), HasSubstr("\"hint_expected_objects\":4"));
  terrace_free(text);
  const uint64_t ids[] = {1, 2, 3};
  ASSERT_EQ(terrace_withdraw(client_, ids, 3, &report), TERRACE_OK);
  EXPECT_EQ(report.accepted, 3u);

  EXPECT_EQ(terrace_hint(client_, nullptr, reads, 2, nullptr), TERRACE_INVALID_ARGUMENT);
  EXPECT_THAT(terrace_last_error(), HasSubstr("reads[0].tokens: need a model"));
  EXPECT_EQ(terrace_hint(client_, nullptr, reads + 1, 1, nullptr), TERRACE_OK);
  reads[1].kind = 4;
  EXPECT_EQ(terrace_hint(client_, model_, reads, 2, nullptr), TERRACE_INVALID_ARGUMENT);
  EXPECT_THAT(terrace_last_error(), HasSubstr("reads.kind: 4; expected 0 .. 3"));
  reads[1].struct_size = 8;
  EXPECT_EQ(terrace_hint(client_, model_, reads, 2, nullptr), TERRACE_INVALID_ARGUMENT);
  EXPECT_THAT(terrace_last_error(), HasSubstr("reads.struct_size: 8"));
  EXPECT_EQ(terrace_hint(client_, model_, nullptr, 1, nullptr), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(terrace_hint(client_, nullptr, nullptr, 0, nullptr), TERRACE_OK);
  EXPECT_EQ(terrace_withdraw(nullptr, ids, 3, nullptr), TERRACE_INVALID_ARGUMENT);
}

TEST_F(CAbiTest, StoreMatchLoad) {
  StoreTokens();
  terrace_match* match = nullptr;
  ASSERT_EQ(
      terrace_match_prefix(client_, model_, tokens_.data(), tokens_.size(), nullptr, 0, &match),
      TERRACE_OK)
      << terrace_last_error();
  EXPECT_EQ(terrace_match_tokens(match), 288u);
  ASSERT_EQ(terrace_match_chunk_count(match), 2u);
  terrace_chunk_info info{};
  ASSERT_EQ(terrace_match_chunk(match, 1, &info), TERRACE_OK);
  EXPECT_EQ(info.token_begin, 256u);
  EXPECT_EQ(info.matched_tokens, 32u);

  terrace_lease* lease = nullptr;
  ASSERT_EQ(terrace_acquire(client_, model_, match, 0, 0, &lease), TERRACE_OK);
  ASSERT_EQ(terrace_wait_layer(lease, 0, 60000), TERRACE_OK) << terrace_last_error();
  ASSERT_EQ(terrace_wait_all(lease, TERRACE_NO_TIMEOUT), TERRACE_OK);
  EXPECT_EQ(terrace_lease_usable_tokens(lease), 288u);
  EXPECT_EQ(terrace_lease_usable_chunks(lease), 2u);
  EXPECT_EQ(terrace_lease_chunk_count(lease), 2u);
  EXPECT_EQ(terrace_ready_parts(lease, 1), 5u);
  for (size_t chunk = 0; chunk < 2; ++chunk) {
    for (uint32_t part = 0; part < 4; ++part) {
      const void* data = nullptr;
      size_t size = 0;
      ASSERT_EQ(terrace_part(lease, chunk, part / 2, part % 2, &data, &size), TERRACE_OK);
      ASSERT_EQ(size, (chunk == 0 ? 256u : 32u) * 32u);
      const auto* bytes = static_cast<const uint8_t*>(data);
      for (size_t i = 0; i < size; ++i) ASSERT_EQ(bytes[i], chunk + 1);
    }
  }
  const uint64_t deadline = terrace_deadline_us(lease);
  EXPECT_EQ(terrace_renew(lease, 600000), TERRACE_OK);
  EXPECT_GT(terrace_deadline_us(lease), deadline);
  EXPECT_EQ(terrace_expired(lease), 0);
  terrace_lease_release(lease);
  terrace_match_free(match);
}

TEST_F(CAbiTest, GrainKeysEndInTheChunkKeys) {
  StoreTokens();
  std::vector<uint8_t> keys(18 * TERRACE_KEY_BYTES);
  size_t count = 0;
  ASSERT_EQ(terrace_grain_keys(client_, model_, tokens_.data(), tokens_.size(), nullptr, 0,
                               keys.data(), 18, &count),
            TERRACE_OK);
  ASSERT_EQ(count, 18u);
  terrace_match* match = nullptr;
  ASSERT_EQ(
      terrace_match_prefix(client_, model_, tokens_.data(), tokens_.size(), nullptr, 0, &match),
      TERRACE_OK);
  terrace_chunk_info info{};
  ASSERT_EQ(terrace_match_chunk(match, 0, &info), TERRACE_OK);
  EXPECT_EQ(std::memcmp(info.key, keys.data() + 15 * TERRACE_KEY_BYTES, TERRACE_KEY_BYTES), 0);
  terrace_match_free(match);
  EXPECT_EQ(terrace_grain_keys(client_, model_, tokens_.data(), tokens_.size(), nullptr, 0,
                               keys.data(), 17, &count),
            TERRACE_RESOURCE_EXHAUSTED);
  EXPECT_EQ(count, 18u);
}

TEST_F(CAbiTest, OpaqueObjectsAndOperators) {
  uint8_t key[TERRACE_KEY_BYTES];
  ASSERT_EQ(terrace_opaque_key(client_, "name", 4, key), TERRACE_OK);
  ASSERT_EQ(terrace_put(client_, key, "hello", 5), TERRACE_OK) << terrace_last_error();
  EXPECT_EQ(terrace_put(client_, key, "hello", 5), TERRACE_ALREADY_EXISTS);
  terrace_lease* lease = nullptr;
  ASSERT_EQ(terrace_get(client_, key, 0, &lease), TERRACE_OK) << terrace_last_error();
  ASSERT_EQ(terrace_wait_all(lease, 60000), TERRACE_OK);
  const void* data = nullptr;
  size_t size = 0;
  ASSERT_EQ(terrace_lease_bytes(lease, &data, &size), TERRACE_OK);
  EXPECT_EQ(std::string(static_cast<const char*>(data), size), "hello");
  terrace_lease_release(lease);

  char* text = nullptr;
  ASSERT_EQ(terrace_status_json(client_, &text), TERRACE_OK);
  EXPECT_THAT(std::string(text), HasSubstr("\"objects\":1"));
  terrace_free(text);
  ASSERT_EQ(terrace_ls_json(client_, 0, 10, &text), TERRACE_OK);
  EXPECT_THAT(std::string(text), StartsWith("{\"objects\":[{\"key\":"));
  EXPECT_THAT(std::string(text), HasSubstr("\"next_cursor\":0}"));
  terrace_free(text);
  ASSERT_EQ(terrace_pin(client_, key, 1), TERRACE_OK);
  ASSERT_EQ(terrace_show_json(client_, key, &text), TERRACE_OK);
  EXPECT_THAT(std::string(text), HasSubstr("\"pinned\":true"));
  terrace_free(text);
  EXPECT_EQ(terrace_flush(client_, 60000), TERRACE_OK) << terrace_last_error();
  terrace_verify_report verified{};
  EXPECT_EQ(terrace_verify(client_, &verified), TERRACE_OK);
  EXPECT_EQ(verified.checked, 1u);
  EXPECT_EQ(verified.corrupt, 0u);
  EXPECT_EQ(terrace_remove(client_, key), TERRACE_OK);
  EXPECT_EQ(terrace_show_json(client_, key, &text), TERRACE_NOT_FOUND);
}

TEST_F(CAbiTest, BadArgumentsAreNamed) {
  terrace_model* model = nullptr;
  EXPECT_EQ(Register("float99", &model), TERRACE_INVALID_ARGUMENT);
  EXPECT_THAT(terrace_last_error(), HasSubstr("float99"));
  EXPECT_EQ(Register("float16", &model, 0), TERRACE_INVALID_ARGUMENT);
  EXPECT_THAT(terrace_last_error(), HasSubstr("kv_heads"));
  EXPECT_EQ(terrace_register_kv(client_, nullptr, &model), TERRACE_INVALID_ARGUMENT);
  EXPECT_THAT(terrace_last_error(), StartsWith("geometry"));
  terrace_kv_geometry geometry{};
  EXPECT_EQ(terrace_register_kv(client_, &geometry, &model), TERRACE_INVALID_ARGUMENT);
  EXPECT_THAT(terrace_last_error(), HasSubstr("struct_size"));

  terrace_match* match = nullptr;
  EXPECT_EQ(terrace_match_prefix(client_, model_, nullptr, 5, nullptr, 0, &match),
            TERRACE_INVALID_ARGUMENT);
  EXPECT_THAT(terrace_last_error(), StartsWith("tokens"));
  EXPECT_EQ(terrace_match_prefix(client_, nullptr, nullptr, 0, nullptr, 0, &match),
            TERRACE_INVALID_ARGUMENT);
  EXPECT_THAT(terrace_last_error(), StartsWith("model"));
  EXPECT_EQ(terrace_match_prefix(client_, model_, nullptr, 0, nullptr, 0, &match), TERRACE_OK);
  EXPECT_EQ(terrace_match_tokens(match), 0u);
  terrace_lease* lease = nullptr;
  EXPECT_EQ(terrace_acquire(client_, model_, match, 0, 0, &lease), TERRACE_NOT_FOUND);
  terrace_match_free(match);

  terrace_store* store = nullptr;
  ASSERT_EQ(
      terrace_begin_store(client_, model_, tokens_.data(), tokens_.size(), nullptr, 0, 0, &store),
      TERRACE_OK);
  EXPECT_EQ(terrace_store_write(store, 0, 0, 2, "x", 1), TERRACE_INVALID_ARGUMENT);
  EXPECT_THAT(terrace_last_error(), StartsWith("kv"));
  EXPECT_EQ(terrace_store_write(store, 0, 7, 0, "x", 1), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(terrace_store_write(store, 0, ~0u, 0, "x", 1), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(terrace_store_write(store, 0, 0, 0, "x", 1), TERRACE_INVALID_ARGUMENT);
  terrace_commit_report report{};
  EXPECT_EQ(terrace_store_commit(store, &report), TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(report.failed, 2u);
  EXPECT_EQ(report.why, TERRACE_INVALID_ARGUMENT);
  EXPECT_EQ(terrace_store_abort(store), TERRACE_OK);
  terrace_store_free(store);
}

TEST(CAbi, NullHandlesAreAnswered) {
  EXPECT_STREQ(VersionFromC(), terrace_version());
  EXPECT_EQ(NullFromC(), TERRACE_INVALID_ARGUMENT);
  EXPECT_THAT(terrace_last_error(), StartsWith("out"));
  terrace_close(nullptr);
  terrace_model_free(nullptr);
  terrace_match_free(nullptr);
  terrace_lease_release(nullptr);
  terrace_store_free(nullptr);
  terrace_free(nullptr);
  EXPECT_EQ(terrace_alive(nullptr), 0);
  EXPECT_EQ(terrace_event_fd(nullptr), -1);
  EXPECT_EQ(terrace_expired(nullptr), 1);
  EXPECT_EQ(terrace_flush(nullptr, 0), TERRACE_INVALID_ARGUMENT);
  terrace_client* client = nullptr;
  terrace_connect_options options{};
  options.struct_size = sizeof options;
  options.socket_path = "/var/tmp/terrace-no-such-socket";
  EXPECT_EQ(terrace_connect(&options, &client), TERRACE_NOT_FOUND);
  EXPECT_EQ(client, nullptr);
}

}  // namespace
