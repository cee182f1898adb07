// Giving Python's lock away while a kernel computes, and taking it back, also when the program
// ends.
#pragma once

#include <nanobind/nanobind.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <thread>

namespace dure {

// Up to 3.13, Python ends a daemon thread that asks for the lock of an interpreter that ends, by
// unwinding its stack. Destructors and catch clauses of C++ lie on it, so the process aborts.
// Before that comes atexit: from then on, a thread that comes out of a kernel waits here until the
// process is gone.
class ExitGate {
 public:
  // Called without Python's lock, before it is taken.
  void enter() {
    std::unique_lock lock(mutex_);
    if (closed_ && std::this_thread::get_id() != closer_) changed_.wait(lock, [] { return false; });
    ++entering_;
  }

  // Called with the lock.
  void entered() {
    const std::lock_guard lock(mutex_);
    if (--entering_ == 0) changed_.notify_all();
  }

  // Called with the lock by the thread that ends the interpreter; returns when no other thread
  // waits for the lock any more. A forked child has none of the threads that are counted.
  void close() {
    if (getpid() != home_) return;
    PyThreadState* state = PyEval_SaveThread();
    {
      std::unique_lock lock(mutex_);
      closed_ = true;
      closer_ = std::this_thread::get_id();
      changed_.wait(lock, [this] { return entering_ == 0; });
    }
    PyEval_RestoreThread(state);
  }

 private:
  const pid_t home_ = getpid();
  std::mutex mutex_;
  std::condition_variable changed_;
  int entering_ = 0;
  bool closed_ = false;
  std::thread::id closer_;
};

inline ExitGate& exit_gate() {
  static auto* one = new ExitGate;  // never destroyed: threads may wait in it at exit
  return *one;
}

// Other Python threads may run for as long as it lives.
class GilReleased {
 public:
  GilReleased() : state_(PyEval_SaveThread()) {}
  ~GilReleased() {
    exit_gate().enter();
    PyEval_RestoreThread(state_);
    exit_gate().entered();
  }
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

 private:
  PyThreadState* state_;
};

// Python may be called for as long as it lives; for code below a GilReleased.
class GilAcquired {
 public:
  GilAcquired() {
    exit_gate().enter();
    state_ = PyGILState_Ensure();
    exit_gate().entered();
  }
  ~GilAcquired() { PyGILState_Release(state_); }
  GilAcquired(const GilAcquired&) = delete;
  GilAcquired& operator=(const GilAcquired&) = delete;

 private:
  PyGILState_STATE state_;
};

}  // namespace dure
