// Memory of one thread of the kernel.

#ifndef FOVEAL_ARENA_H
#define FOVEAL_ARENA_H

#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

// Zeroed buffers of one thread.
class Arena {
  public:
    Arena() = default;
    Arena(const Arena&) = delete;
    ~Arena() {
        for (void* buffer : buffers_) free(buffer);
    }
    template <class T>
    T* take(size_t count) {
        size_t bytes = (count * sizeof(T) + 64) / 64 * 64;
        void* buffer = aligned_alloc(64, bytes);
        if (!buffer) throw std::bad_alloc();
        memset(buffer, 0, bytes);
        buffers_.push_back(buffer);
        return (T*)buffer;
    }

  private:
    std::vector<void*> buffers_;
};

inline long round_up(long n, long to) { return (n + to - 1) / to * to; }
inline long ceil_div(long n, long by) { return (n + by - 1) / by; }

#endif
