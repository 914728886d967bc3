#include "saved_run.h"

#include <fcntl.h>
#include <lram/loop/error.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
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
constexpr int kTries = 100;
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

// A file of a name of its own, beside `file`: nobody put something else there, nor a link to elsewhere. Its descriptor.
int open_beside(const std::string& file, std::string& name) {
  std::random_device random;
  for (int tries = 0; tries < kTries; ++tries) {
    name = file + "." + std::to_string(random()) + ".part";
    const int opened = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (opened >= 0 || errno != EEXIST) return opened;
  }
  return -1;
}

// A descriptor, for reading.
class Opened {
 public:
  explicit Opened(int file) : file_(file) {}
  ~Opened() {
    if (file_ >= 0) ::close(file_);
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

  bool is_open() const { return file_ >= 0; }
  // Bytes of a regular file; -1: it is something else, such as a folder.
  off_t size() const {
    struct stat facts = {};
    return fstat(file_, &facts) == 0 && S_ISREG(facts.st_mode) ? facts.st_size : -1;
  }
  bool read(void* data, std::size_t size) const {
    char* at = static_cast<char*>(data);
    while (size > 0) {
      const ssize_t got = ::read(file_, at, size);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return false;
      at += got;
      size -= static_cast<std::size_t>(got);
    }
    return true;
  }

 private:
  int file_;
};

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
  std::string temporary;
  const int opened = open_beside(file, temporary);
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
  // O_NONBLOCK: a pipe that nobody writes to is refused, not waited for
  const Opened opened(::open(file.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  if (!opened.is_open()) {
    const int error = errno;
    if (error == ENOENT) return false;
    throw Error(file + ": cannot be read: " + std::generic_category().message(error));
  }
  const off_t size = opened.size();
  if (size < 0) throw Error(file + ": cannot be read: expected a file");
  Header header = {};
  if (!opened.read(&header, sizeof header) || std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    throw Error(file + ": expected a saved run, got another file");
  const std::uint64_t bytes = static_cast<std::uint64_t>(size) - sizeof header;
  if (header.count != bytes / sizeof(float) || bytes % sizeof(float) != 0) damaged(file);
  if (header.count != count)
    throw Error(file + ": expected " + std::to_string(count) + " numbers of state, as this policy has, got " +
                std::to_string(header.count));
  run.state.resize(count);
  if (!opened.read(run.state.data(), bytes) || header.checksum != checksum(header, run.state) || header.is_first > 1 ||
      !std::isfinite(header.target) || !std::isfinite(header.return_to_go))
    damaged(file);
  std::memcpy(run.source.data(), header.source, sizeof header.source);
  run.target = header.target;
  run.return_to_go = header.return_to_go;
  run.is_first = header.is_first == 1;
  return true;
}

}  // namespace lram::loop
