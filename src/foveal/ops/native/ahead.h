// Fetching rows of memory before they are wanted.

#ifndef FOVEAL_AHEAD_H
#define FOVEAL_AHEAD_H

// Rows of memory that will be wanted soon, fetched a few at a time while products run.
class Ahead {
  public:
    void clear() { size_ = next_ = 0; }
    void add(const void* row, long bytes) {
        if (size_ < MOST) rows_[size_++] = {(const char*)row, bytes};
    }
    // Goes on until `part` of `parts` of what was added is under way.
    void fetch(long part, long parts) {
        const long until = size_ * part / parts;
        for (; next_ < until; ++next_)
            for (long at = 0; at < rows_[next_].bytes; at += 64)
                __builtin_prefetch(rows_[next_].start + at, 0, 2);
    }

  private:
    static constexpr long MOST = 512;
    struct Row {
        const char* start;
        long bytes;
    };
    long size_ = 0, next_ = 0;
    Row rows_[MOST];
};

#endif
