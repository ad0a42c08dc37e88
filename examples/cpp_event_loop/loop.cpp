// An event loop in C++, which knows nothing of Python: for each event it fills columns, calls a
// function by its pointer, and reads what that has written. `run.py` compiles it.
#include <chrono>
#include <cstdlib>

#include "event.h"  // made by to_cpp

// Gets the memory of an event and its rows; gives 0, or anything else to end the loop.
using Model = int (*)(void* memory, std::size_t rows);

extern "C" int run(Model model, const std::size_t* rows, std::size_t events, double* seconds,
                   double* sums) {
  for (std::size_t event = 0; event < events; ++event) {
    const std::size_t count = rows[event], bytes = Event::nbytes(count);
    void* memory = std::aligned_alloc(Event::alignment, bytes ? bytes : Event::alignment);
    if (!memory) return 1;
    Event::View view(memory, count);
    for (std::size_t i = 0; i < count; ++i) {
      const auto x = static_cast<float>(i + event);
      view.pt(i) = 1 + x / 8;
      view.eta(i) = x / 100 - 2;
      view.phi(i) = x / 50 - 3;
      view.score(i) = -1;
    }
    view.field() = 3.8f;
    const auto begin = std::chrono::steady_clock::now();
    const int failed = model(memory, count);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    seconds[event] = took.count();
    sums[event] = 0;
    for (std::size_t i = 0; i < count; ++i) sums[event] += static_cast<double>(view.score(i));
    std::free(memory);
    if (failed) return failed;
  }
  return 0;
}
