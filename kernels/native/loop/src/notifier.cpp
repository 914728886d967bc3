#include <lram/loop/notifier.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace lram::loop {
namespace {

const char* environment(const char* name) {
  const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): nothing here writes it
  return value == nullptr ? "" : value;
}

double monotonic() {
  timespec time = {};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

Notifier::Notifier() : address_(environment("NOTIFY_SOCKET")) {
  if (address_.empty() || address_.size() >= sizeof(sockaddr_un::sun_path)) return;
  socket_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (address_[0] == '@') address_[0] = '\0';
  // twice as often as it must be, as its manual says; only where the process that is watched is this one
  const char* watched = environment("WATCHDOG_PID");
  if (*watched == '\0' || std::strtol(watched, nullptr, 10) == getpid())
    every_ = static_cast<double>(std::strtoull(environment("WATCHDOG_USEC"), nullptr, 10)) / 2e6;
}

Notifier::~Notifier() {
  if (socket_ >= 0) ::close(socket_);
}

void Notifier::alive() {
  if (every_ <= 0) return;
  const double now = monotonic();
  if (now - last_ < every_) return;
  last_ = now;
  tell("WATCHDOG=1");
}

void Notifier::tell(const char* text) {
  if (socket_ < 0) return;
  sockaddr_un to = {};
  to.sun_family = AF_UNIX;
  std::copy(address_.begin(), address_.end(), std::begin(to.sun_path));
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address_.size());
  // nobody listens, or its queue is full: no reason to be late
  static_cast<void>(
      sendto(socket_, text, std::strlen(text), MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&to), size));
}

}  // namespace lram::loop
