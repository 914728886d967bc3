#include "saved_run.h"

#include <fcntl.h>
#include <lram/loop/error.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <system_error>

namespace lram::loop {
namespace {

// A header, then the floats of the state, all of it as little-endian processors keep it.
struct Header {
  char magic[8];
  unsigned char source[32];
  float target;
  float return_to_go;
  std::uint32_t is_first;
  std::uint32_t unused;
  std::uint64_t count;     // floats
  std::uint64_t checksum;  // of all with this as 0
};
static_assert(sizeof(Header) == 72, "no gaps");
constexpr char kMagic[8] = {'L', 'R', 'A', 'M', 'R', 'U', 'N', '1'};

// FNV-1a, 64 bits.
std::uint64_t checksum(const void* data, std::size_t size, std::uint64_t sum) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  for (std::size_t i = 0; i < size; ++i) sum = (sum ^ bytes[i]) * 0x100000001b3U;
  return sum;
}

std::uint64_t checksum(Header header, const std::vector<float>& state) {
  header.checksum = 0;
  const std::uint64_t sum = checksum(&header, sizeof header, 0xcbf29ce484222325U);
  return checksum(state.data(), state.size() * sizeof(float), sum);
}

bool write_all(int file, const void* data, std::size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(file, at, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    at += written;
    size -= static_cast<std::size_t>(written);
  }
  return true;
}

[[noreturn]] void not_saved(const std::string& file, int error) {
  throw Error(file + ": not saved: " + std::generic_category().message(error));
}

[[noreturn]] void damaged(const std::string& file) { throw Error(file + ": damaged: it is not what was saved"); }

}  // namespace

void write_run(const std::string& file, const SavedRun& run) {
  Header header = {};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::memcpy(header.source, run.source.data(), sizeof header.source);
  header.target = run.target;
  header.return_to_go = run.return_to_go;
  header.is_first = run.is_first ? 1 : 0;
  header.count = run.state.size();
  header.checksum = checksum(header, run.state);
  const std::string temporary = file + "." + std::to_string(getpid()) + ".part";
  const int opened = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (opened < 0) not_saved(file, errno);
  const bool written = write_all(opened, &header, sizeof header) &&
                       write_all(opened, run.state.data(), run.state.size() * sizeof(float)) && fsync(opened) == 0;
  int error = written ? 0 : errno;
  if (::close(opened) != 0 && error == 0) error = errno;
  if (error == 0 && std::rename(temporary.c_str(), file.c_str()) == 0) return;
  if (error == 0) error = errno;
  unlink(temporary.c_str());
  not_saved(file, error);
}

bool read_run(const std::string& file, std::size_t count, SavedRun& run) {
  if (access(file.c_str(), F_OK) != 0) return false;
  std::ifstream stream(file, std::ios::binary | std::ios::ate);
  const std::streamoff size = stream ? static_cast<std::streamoff>(stream.tellg()) : -1;
  if (size < 0 || size == std::numeric_limits<std::streamoff>::max())
    throw Error(file + ": cannot be read");  // a folder
  Header header = {};
  stream.seekg(0);
  if (!stream.read(reinterpret_cast<char*>(&header), sizeof header) ||
      std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    throw Error(file + ": expected a saved run, got another file");
  const std::uint64_t bytes = static_cast<std::uint64_t>(size) - sizeof header;
  if (header.count != bytes / sizeof(float) || bytes % sizeof(float) != 0) damaged(file);
  if (header.count != count)
    throw Error(file + ": expected " + std::to_string(count) + " numbers of state, as this policy has, got " +
                std::to_string(header.count));
  run.state.resize(count);
  stream.read(reinterpret_cast<char*>(run.state.data()), static_cast<std::streamsize>(bytes));
  if (!stream || header.checksum != checksum(header, run.state) || header.is_first > 1 ||
      !std::isfinite(header.target) || !std::isfinite(header.return_to_go))
    damaged(file);
  std::memcpy(run.source.data(), header.source, sizeof header.source);
  run.target = header.target;
  run.return_to_go = header.return_to_go;
  run.is_first = header.is_first == 1;
  return true;
}

}  // namespace lram::loop
