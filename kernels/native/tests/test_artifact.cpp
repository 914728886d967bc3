// Artifacts that are cut off, altered or from the future: an error, never a crash.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <iterator>

#include "arena.h"
#include "error.h"
#include "testing.h"

using namespace lram_testing;

namespace {

lram_status try_open(const std::vector<std::uint8_t>& content) {
  setenv("LRAM_ISA", "", 1);
  const TemporaryFile file(content);
  lram_model* model = nullptr;
  const lram_status status = lram_open(file.path().c_str(), nullptr, &model);
  CHECK((status == LRAM_OK) == (model != nullptr));
  if (status == LRAM_OK) Driver({model, [](lram_model*) {}}, 1).step(0);  // what is accepted also runs
  lram_close(model);
  return status;
}

bool told(const char* text) { return std::string(lram_last_error()).find(text) != std::string::npos; }

}  // namespace

TEST(whole_artifacts_open) { CHECK(try_open(make_artifact({})) == LRAM_OK); }

TEST(a_truncated_artifact_is_refused_at_every_length) {
  const std::vector<std::uint8_t> whole = make_artifact({});
  for (std::size_t size = 0; size < whole.size(); size += size < 4000 ? 7 : 10007) {
    CHECK(try_open({whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size)}) == LRAM_ERROR_ARTIFACT);
  }
}

TEST(an_altered_byte_is_found) {
  std::vector<std::uint8_t> bytes = make_artifact({});
  for (std::size_t at = 0; at < bytes.size(); at += at < 300 ? 1 : 9973) {
    bytes[at] ^= 0x10;
    CHECK(try_open(bytes) != LRAM_OK);
    bytes[at] ^= 0x10;
  }
  CHECK(try_open(bytes) == LRAM_OK);
}

TEST(a_header_that_lies_does_no_harm) {  // even with the right checksum
  const std::vector<std::uint8_t> whole = make_artifact({});
  const std::size_t directory = sizeof(lram::FileHeader) + 3 * sizeof(lram::TokenEntry) + 3 * sizeof(lram::BlockEntry) +
                                20 * sizeof(lram::TensorEntry);
  for (const std::uint32_t value : {0U, 1U, 3U, 0x7fU, 0xffffU, 0x7fffffffU, 0xffffffffU})
    for (std::size_t at = lram::kChecksumStart; at < directory; at += 4) {
      std::vector<std::uint8_t> bytes = whole;
      std::memcpy(bytes.data() + at, &value, sizeof value);
      seal(bytes);
      try_open(bytes);
    }
}

TEST(a_newer_artifact_says_so) {
  std::vector<std::uint8_t> bytes = make_artifact({});
  bytes[8] = 8;
  CHECK(try_open(bytes) == LRAM_ERROR_VERSION);
  CHECK(told("version: this artifact has 8, this library reads 7; update lram-export"));
}

TEST(an_older_artifact_says_what_to_do) {
  std::vector<std::uint8_t> bytes = make_artifact({});
  for (const std::uint8_t version : {0, 1, 2}) {
    bytes[8] = version;
    CHECK(try_open(bytes) == LRAM_ERROR_VERSION);
    CHECK(told("this library reads 7; export the bundle again"));
  }
  for (const std::uint8_t version : {3, 4}) {  // which have all but an interface, or what is said of a robot
    bytes[8] = version;
    seal(bytes);
    CHECK(try_open(bytes) == LRAM_OK);
  }
}

TEST(deviations_are_positive) {
  Shape shape;
  shape.interface = true;
  CHECK(try_open(make_artifact(shape)) == LRAM_OK);
  for (const float deviation : {0.0F, -1.0F, NAN}) {
    shape.deviation = deviation;
    CHECK(try_open(make_artifact(shape)) == LRAM_ERROR_ARTIFACT);
    CHECK(told("observation: expected positive deviations"));
  }
}

TEST(other_files_are_refused) {
  CHECK(try_open(std::vector<std::uint8_t>(5000, 'x')) == LRAM_ERROR_ARTIFACT);
  CHECK(told("magic"));
  lram_model* model = nullptr;
  CHECK(lram_open("/nowhere/model.lrn", nullptr, &model) == LRAM_ERROR_FILE && model == nullptr);
  CHECK(told("/nowhere/model.lrn: cannot be opened"));
  CHECK(lram_open("/tmp", nullptr, &model) == LRAM_ERROR_FILE);
  CHECK(lram_open(nullptr, nullptr, &model) == LRAM_ERROR_ARGUMENT);
}

TEST(an_artifact_larger_than_memory_is_refused_before_it_is_read) {
  const std::uint64_t size = std::uint64_t{1} << 43;  // a hole: it takes no room on the disk
  std::vector<std::uint8_t> bytes = make_artifact({});
  std::memcpy(bytes.data() + offsetof(lram::FileStart, file_bytes), &size, sizeof size);
  const TemporaryFile file(bytes);
  CHECK(truncate(file.path().c_str(), static_cast<off_t>(size)) == 0);
  lram_model* model = nullptr;
  CHECK(lram_open(file.path().c_str(), nullptr, &model) == LRAM_ERROR_MEMORY && model == nullptr);
  CHECK(told("8796093022208 bytes do not fit the memory of this machine"));
}

TEST(a_state_larger_than_memory_is_refused) {
  const TemporaryFile file(make_artifact({}));
  const ModelPointer model = open_model(file, "");
  lram_state* state = nullptr;
  for (const int batch : {-1, 0, 4097}) {
    CHECK(lram_state_create(model.get(), batch, &state) == LRAM_ERROR_ARGUMENT && state == nullptr);
    CHECK(told("batch: expected 1 to 4096"));
  }
  Shape wide;
  wide.heads = wide.blocks = 1;
  wide.hidden = 16;
  wide.inner = 2048;
  wide.slstm_at = {};
  wide.layout = lram::Layout::tiled_int4;
  const TemporaryFile wide_file(make_artifact(wide));
  const ModelPointer wide_model = open_model(wide_file, "");
  CHECK(lram_state_create(wide_model.get(), 4096, &state) == LRAM_ERROR_MEMORY && state == nullptr);
  CHECK(told("state: a buffer of 17179869184 elements, expected at most 2147483647; use a smaller batch"));
  try {
    const lram::Arena arena(std::size_t{1} << 45, false);
    CHECK(false);
  } catch (const lram::Error& error) {
    CHECK(error.status() == LRAM_ERROR_MEMORY);
    CHECK(std::string(error.what()).find("bytes do not fit the memory that is free") != std::string::npos);
  }
}

TEST(sums_of_codes_that_do_not_fit_are_refused) {
  Shape shape;
  shape.images = true;
  shape.hidden = shape.inner = 16;
  shape.blocks = shape.heads = 1;
  shape.slstm_at = {};
  shape.layout = lram::Layout::tiled_int8;
  shape.image = 512;
  const TemporaryFile largest(make_artifact(shape));
  open_model(largest, "");
  shape.image = 520;
  CHECK(try_open(make_artifact(shape)) == LRAM_ERROR_ARTIFACT);
  CHECK(
      told("tensor 1 of token 1: expected at most 133144 columns of 8-bit codes, whose sums fit 32 bits, got 135200"));
  for (const lram::Layout layout :
       {lram::Layout::tiled_float32, lram::Layout::tiled_int8g, lram::Layout::tiled_int4}) {  // these add otherwise
    shape.layout = layout;
    const TemporaryFile file(make_artifact(shape));
    open_model(file, "");
  }
}

TEST(options_that_make_no_sense_are_refused) {
  const TemporaryFile file(make_artifact({}));
  lram_options options;
  lram_options_init(&options);
  options.threads = 0;
  lram_model* model = nullptr;
  CHECK(lram_open(file.path().c_str(), &options, &model) == LRAM_ERROR_ARGUMENT);
  CHECK(told("threads: expected 1 to 1024, got 0"));
  options.threads = 2;
  const int unknown = 3;  // as a caller in C may say it
  std::memcpy(&options.state_format, &unknown, sizeof unknown);
  CHECK(lram_open(file.path().c_str(), &options, &model) == LRAM_ERROR_ARGUMENT);
  CHECK(told("state_format: expected 0 to 2, got 3"));
  options.state_format = LRAM_STATE_AS_EXPORTED;
  const int nowhere = 100000;
  options.cpus = &nowhere;
  options.cpu_count = 1;
  CHECK(lram_open(file.path().c_str(), &options, &model) == LRAM_ERROR_ARGUMENT);
  CHECK(told("cpus: no thread can be pinned to CPU 100000"));
  setenv("LRAM_ISA", "mmx", 1);
  CHECK(lram_open(file.path().c_str(), nullptr, &model) == LRAM_ERROR_ARGUMENT);
  CHECK(told("LRAM_ISA: expected one of"));
}

TEST(a_status_has_a_name) {
  CHECK(std::string(lram_status_name(LRAM_OK)) == "LRAM_OK");
  CHECK(std::string(lram_status_name(LRAM_ERROR_FORKED)) == "LRAM_ERROR_FORKED");
  for (int status = LRAM_OK; status <= LRAM_ERROR_FORKED; ++status)
    CHECK(std::string(lram_status_name(static_cast<lram_status>(status))).find("LRAM_") == 0);
  CHECK(std::string(lram_status_name(static_cast<lram_status>(LRAM_ERROR_FORKED + 1))) == "unknown status");
}

TEST(a_model_describes_itself) {
  const TemporaryFile file(make_artifact({}));
  const ModelPointer model = open_model(file, "plain");
  lram_description about;
  CHECK_OK(lram_describe(model.get(), &about));
  CHECK(std::string(about.isa) == "plain" && about.observation_size == 20 && about.action_size == 3);
  CHECK(about.logits_size == 150 && about.state_tensors == 13);
  lram_tensor tensor;
  CHECK_OK(lram_state_tensor(model.get(), 1, &tensor));
  CHECK(std::string(tensor.name) == "state.0.C" && tensor.rank == 3 && tensor.extents[2] == 32);
  CHECK_OK(lram_state_tensor(model.get(), 8, &tensor));
  CHECK(std::string(tensor.name) == "state.1.m" && tensor.initial == -1e30F);
  CHECK(lram_state_tensor(model.get(), 13, &tensor) == LRAM_ERROR_ARGUMENT);
}

TEST(a_model_says_what_it_is) {
  const auto described = [](const Shape& shape) {
    const TemporaryFile file(make_artifact(shape));
    lram_description about;
    CHECK_OK(lram_describe(open_model(file, "plain").get(), &about));
    return about;
  };
  Shape shape;
  lram_description about = described(shape);
  CHECK(std::string(about.name) == shape.name);
  CHECK(std::count(std::begin(about.source_sha256), std::end(about.source_sha256), shape.source) == 32);
  shape.name = "";
  shape.source = 0;
  about = described(shape);
  CHECK(about.name[0] == '\0' && about.source_sha256[0] == 0 && about.source_sha256[31] == 0);
}

TEST(states_are_kept_as_exported_unless_the_options_say) {
  const auto format_of = [](const Shape& shape, lram_state_format asked) {
    const TemporaryFile file(make_artifact(shape));
    const ModelPointer model = open_model(file, "plain", 1, asked);
    lram_description about;
    CHECK_OK(lram_describe(model.get(), &about));
    const Driver driver(model, 1);
    lram_memory memory;
    CHECK_OK(lram_state_memory(driver.state.get(), &memory));
    return std::make_pair(about.state_format, memory.bytes);
  };
  Shape shape;
  const auto full = format_of(shape, LRAM_STATE_FLOAT32);
  const auto lazy = format_of(shape, LRAM_STATE_LAZY_HALF);
  CHECK(full.first == LRAM_STATE_FLOAT32 && lazy.first == LRAM_STATE_LAZY_HALF && full.second != lazy.second);
  CHECK(format_of(shape, LRAM_STATE_AS_EXPORTED) == full);
  for (const float said : {0.0F, 1.0F}) {
    shape.state_format = said;
    CHECK(format_of(shape, LRAM_STATE_AS_EXPORTED) == (said == 0 ? full : lazy));
    CHECK(format_of(shape, LRAM_STATE_FLOAT32) == full);
    CHECK(format_of(shape, LRAM_STATE_LAZY_HALF) == lazy);
  }
  for (const float said : {0.5F, 2.0F, -2.0F, NAN}) {
    shape.state_format = said;
    CHECK(try_open(make_artifact(shape)) == LRAM_ERROR_ARTIFACT);
    CHECK(told("tensor 17 0: expected 0 or 1, got "));
  }
  const Shape without = mamba(lram::Layout::tiled_float32);  // no matrices that could be lazy
  CHECK(format_of(without, LRAM_STATE_LAZY_HALF) == format_of(without, LRAM_STATE_FLOAT32));
}

TEST(a_name_is_a_whole_text) {
  const auto status_of = [](const std::string& name) {
    Shape shape;
    shape.name = name;
    return try_open(make_artifact(shape));
  };
  const std::string long_name(27, 'x');
  for (const std::string& name :
       {std::string(), long_name, std::string("\xc2\xa0\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80"),
        std::string("\xf0\x90\x80\x80\xf4\x8f\xbf\xbf")})
    CHECK(status_of(name) == LRAM_OK);
  CHECK(status_of(long_name + "x") == LRAM_ERROR_ARTIFACT);
  CHECK(told("name: expected at most 27 bytes"));
  CHECK(status_of(std::string("a\0b", 3)) == LRAM_ERROR_ARTIFACT);
  CHECK(told("name: expected zeros after its end"));
  // a lone continuation, cut off, too long for its code, half a surrogate pair, beyond Unicode, control characters
  for (const char* name :
       {"\x80", "a\xc3", "\xe2\x82", "\xf0\x9f\x98", "\xc0\xaf", "\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf",
        "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xff", "\xc3(", "a\nb", "\x1b[31m", "\x7f", "\xc2\x9b"}) {
    CHECK(status_of(name) == LRAM_ERROR_ARTIFACT);
    CHECK(told("name: expected UTF-8 without control characters"));
  }
}

int main() { return run_all(); }
