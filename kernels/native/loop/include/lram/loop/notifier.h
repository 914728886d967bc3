// What a service tells systemd: that it is ready, that it lives, that it stops. Without systemd it tells nobody.
#ifndef LRAM_LOOP_NOTIFIER_H
#define LRAM_LOOP_NOTIFIER_H

#include <string>

namespace lram::loop {

// The protocol is a datagram to a socket that the environment names (sd_notify(3)). It never waits.
class Notifier {
 public:
  // Reads what the environment says, which systemd sets: NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID.
  Notifier();
  virtual ~Notifier();
  Notifier(const Notifier&) = delete;
  Notifier& operator=(const Notifier&) = delete;

  void ready() { tell("READY=1"); }        // the loop runs
  void alive();                            // a step was made; told half as far apart as the watchdog wants it
  void stopping() { tell("STOPPING=1"); }  // the motors are about to be stopped

 protected:
  virtual void tell(const char* text);

 private:
  std::string address_;
  int socket_ = -1;
  double every_ = 0;  // seconds; 0: nobody watches
  double last_ = -1e300;
};

}  // namespace lram::loop

#endif
