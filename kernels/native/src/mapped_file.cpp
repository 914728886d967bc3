#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "error.h"
#include "machine.h"

namespace lram {
namespace {

std::string number(std::uint64_t value) { return std::to_string(value); }

struct Checksum {
  std::uint64_t sum = 0;
  std::uint64_t weighted = 0;
};

// Without a multiplication per word, in lanes that compilers turn into vectors: at the speed of memory.
Checksum checksum(const std::uint8_t* bytes, std::size_t size) {
  constexpr std::size_t lanes = 16;
  std::uint64_t sums[lanes] = {};
  std::uint64_t running[lanes] = {};  // sum of the sums: a lane's first word counts once for every round
  const std::size_t rounds = size / (4 * lanes);
  for (std::size_t round = 0; round < rounds; ++round) {
    std::uint32_t words[lanes];
    std::memcpy(words, bytes + round * sizeof words, sizeof words);
    for (std::size_t i = 0; i < lanes; ++i) {
      sums[i] += words[i];
      running[i] += sums[i];
    }
  }
  Checksum found;
  for (std::size_t i = 0; i < lanes; ++i) {
    found.sum += sums[i];
    // word r of lane i is number r * lanes + i + 1, and counts rounds - r times in `running`
    found.weighted += (rounds * lanes + i + 1) * sums[i] - lanes * running[i];
  }
  for (std::size_t at = rounds * 4 * lanes; at + 4 <= size; at += 4) {
    std::uint32_t word = 0;
    std::memcpy(&word, bytes + at, sizeof word);
    found.sum += word;
    found.weighted += (at / 4 + 1) * word;
  }
  return found;
}

// Told of what is too short for a start, and so of no kind: an artifact of a network has at least so many.
constexpr std::size_t kFewestBytes = sizeof(FileHeader);

}  // namespace

MappedFile::MappedFile(const std::string& path)
    // not blocking: a pipe is refused, not waited for
    : path_(path), file_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  struct stat about = {};
  if (file_.number < 0 || fstat(file_.number, &about) != 0)
    throw Error(LRAM_ERROR_FILE, path + ": cannot be opened: " + std::strerror(errno));
  if (!S_ISREG(about.st_mode)) throw Error(LRAM_ERROR_FILE, path + ": expected a file");
  size_ = static_cast<std::size_t>(about.st_size);
  if (size_ < sizeof start_) refuse("expected at least " + number(kFewestBytes) + " bytes, got " + number(size_));
  // before anything is mapped: what is no artifact may be as large as it likes
  const ssize_t got = pread(file_.number, &start_, sizeof start_, 0);
  if (got != static_cast<ssize_t>(sizeof start_))
    throw Error(LRAM_ERROR_FILE, path + ": cannot be read: " + (got < 0 ? std::strerror(errno) : "it became shorter"));
}

MappedFile::MappedFile(const std::uint8_t* bytes, std::size_t size) : path_("memory"), bytes_(bytes), size_(size) {
  if (size_ < sizeof start_) refuse("expected at least " + number(kFewestBytes) + " bytes, got " + number(size_));
  std::memcpy(&start_, bytes_, sizeof start_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      file_(std::move(other.file_)),
      start_(other.start_),
      bytes_(other.bytes_),
      size_(other.size_),
      mapped_(std::exchange(other.mapped_, false)),
      copy_(std::move(other.copy_)) {}

MappedFile::~MappedFile() {
  if (mapped_) munmap(const_cast<std::uint8_t*>(bytes_), size_);
}

void MappedFile::Descriptor::close() {
  if (number >= 0) ::close(number);
  number = -1;
}

bool MappedFile::starts_with(const char (&magic)[8]) const {
  return std::memcmp(start_.magic, magic, sizeof magic) == 0;
}

void MappedFile::map(const char (&magic)[8], std::uint32_t oldest, std::uint32_t version, std::size_t header_bytes,
                     bool huge_pages) {
  check_start(magic, oldest, version, header_bytes);
  if (bytes_ != nullptr) return;
  const std::uint64_t memory = machine_memory().total;
  if (size_ > memory)
    throw Error(LRAM_ERROR_MEMORY, path_ + ": " + number(size_) + " bytes do not fit the memory of this machine, " +
                                       number(memory) + " bytes");
  if (!huge_pages || !copy()) {
    void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file_.number, 0);
    if (mapped == MAP_FAILED) throw Error(LRAM_ERROR_MEMORY, path_ + ": cannot be mapped: " + std::strerror(errno));
    bytes_ = static_cast<const std::uint8_t*>(mapped);
    mapped_ = true;
  }
  file_.close();
  // what counts is what is mapped, which is another where somebody wrote meanwhile
  std::memcpy(&start_, bytes_, sizeof start_);
  check_start(magic, oldest, version, header_bytes);
}

bool MappedFile::copy() {
  if (size_ < huge_page_bytes() || size_ > machine_memory().available) return false;
  std::unique_ptr<Pages> pages;
  try {
    pages = std::make_unique<Pages>(path_, size_, true);
  } catch (const Error&) {
    return false;
  }
  if (bytes_in_huge_pages(pages->begin(), size_) == 0) return false;  // a copy for nothing
  for (std::size_t at = 0; at < size_;) {
    const ssize_t got = pread(file_.number, pages->begin() + at, size_ - at, static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0)
      throw Error(LRAM_ERROR_FILE,
                  path_ + ": cannot be read: " + (got < 0 ? std::strerror(errno) : "it became shorter"));
    at += static_cast<std::size_t>(got);
  }
  pages->protect();
  copy_ = std::move(pages);
  bytes_ = copy_->begin();
  return true;
}

void MappedFile::check_start(const char (&magic)[8], std::uint32_t oldest, std::uint32_t version,
                             std::size_t header_bytes) const {
  if (size_ < header_bytes) refuse("expected at least " + number(header_bytes) + " bytes, got " + number(size_));
  if (!starts_with(magic)) refuse_kind();
  if (start_.version < oldest || start_.version > version)
    throw Error(LRAM_ERROR_VERSION,
                path_ + ": version: this artifact has " + number(start_.version) + ", this library reads " +
                    number(version) +
                    (start_.version > version ? "; update lram-export" : "; export the bundle again"));
  if (start_.header_bytes != header_bytes)
    refuse("header_bytes: expected " + number(header_bytes) + ", got " + number(start_.header_bytes));
  if (start_.file_bytes != size_)
    refuse("file_bytes: expected " + number(start_.file_bytes) + ", the file has " + number(size_));
  if (size_ % 8 != 0) refuse("file_bytes: expected a multiple of 8, got " + number(size_));
}

void MappedFile::check_checksum() const {
  const Checksum found = checksum(bytes_ + kChecksumStart, size_ - kChecksumStart);
  if (found.sum != start_.checksum[0] || found.weighted != start_.checksum[1])
    refuse("checksum: the file was altered; copy or export it again");
}

void MappedFile::lock() const {
  if (mlock(bytes_, size_) != 0)
    throw Error(LRAM_ERROR_MEMORY, path_ + ": " + number(size_) + " bytes cannot be locked: " + std::strerror(errno) +
                                       "; raise the limit (ulimit -l) or do not lock");
}

void MappedFile::refuse(const std::string& problem) const { throw Error(LRAM_ERROR_ARTIFACT, path_ + ": " + problem); }

void MappedFile::refuse_kind() const { refuse("magic: not an artifact of the target `native`"); }

}  // namespace lram
