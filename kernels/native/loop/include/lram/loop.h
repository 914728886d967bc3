// lram/loop.h - a control loop around a policy of lram.h: lram_export.loop in C++17, with the same states and faults.
//
// What happens when, and on each fault, docs/robot.md says in two tables; this is the same loop. It has two floors:
//
//     Loop   the core. It reads no clock and talks to nobody: a controller that somebody else calls at a rate of
//            theirs (ros2_control, an RTOS task) hands it readings, and sends what it gives. See lram/loop/core.h.
//     run()  the core with a clock, a robot and a notifier around it: a whole program. See lram/loop/run.h.
//
// As a program:
//
//     lram::loop::Policy policy("arm.lram/native/model.lrn");
//     policy.warm_up();                            // before there are motors
//     Arm robot;                                   // a lram::loop::Robot of yours
//     lram::loop::Loop loop(policy, {});
//     lram::loop::run(loop, robot);                // throws SafeStop where the robot had to be stopped
//
// As a part of somebody else's loop:
//
//     lram::loop::Loop loop(policy, options);      // all memory is had here
//     loop.begin(held);                            // where an episode begins
//     ...
//     const auto told = loop.update(now, {joints.data(), joints.size()});   // at every tick
//     if (told.stop) brake(loop.why());
//     else if (told.action) send(told.action->floats());                    // null: nothing is to be sent
//
// One robot, one row: the policy's state has a batch of 1, whatever the artifact was exported for.
//
// Real time. Once a Policy is warmed up and a Loop is made, these neither allocate, nor lock, nor call the kernel, with
// one thread (lram_options.threads; more of them wake one another by a system call): Loop::step, send, not_sent,
// reward, finish, update, begin, hold, resume, and what only reads. Exceptions, all named where they belong: a step
// that the engine refuses allocates inside of it, which readings that were checked here do not bring about, but for
// numbers too large for float32; the step at which a swapped policy takes over copies a state; begin() writes all of
// one. They throw nothing. All else (constructors, warm_up, save, load, swap, text) may allocate, wait and throw.
//
// Threads. A Loop and its Policy belong to the thread that steps. From any other thread, or, where it says so, from a
// signal handler: Loop::end, Loop::new_episode, Policy::swap.
//
// Errors of the caller's are lram::loop::Error, one line: what, what was expected, what came.
#ifndef LRAM_LOOP_H
#define LRAM_LOOP_H

#include <lram/loop/account.h>
#include <lram/loop/asked.h>
#include <lram/loop/between.h>
#include <lram/loop/clock.h>
#include <lram/loop/core.h>
#include <lram/loop/error.h>
#include <lram/loop/fault.h>
#include <lram/loop/notifier.h>
#include <lram/loop/policy.h>
#include <lram/loop/readings.h>
#include <lram/loop/robot.h>
#include <lram/loop/run.h>
#include <lram/loop/values.h>

#endif
