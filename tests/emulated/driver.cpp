// One call of the kernel, read from a file and written back: for processors that run under an
// emulator, where there is no Python. remote.py writes the file and says how it is laid out.

#include <cstdio>
#include <cstring>
#include <vector>

#include "plan.h"

namespace {

struct Segment {
    int64_t address, size, offset;
};

struct Header {
    int64_t backward, call_size, num_segments;
};

std::vector<char> blob;
const Segment* segments;
int64_t num_segments;

// Where the bytes of a pointer of the caller lie in this process.
template <class T>
T* moved(T*& pointer) {
    const int64_t address = (int64_t)pointer;
    for (int64_t i = 0; address && i < num_segments; ++i) {
        const Segment& one = segments[i];
        if (one.address <= address && address < one.address + one.size)
            return pointer = (T*)(blob.data() + one.offset + (address - one.address));
    }
    return pointer = nullptr;
}

void move(Places& places) {
    moved(places.tiles);
    moved(places.items);
}

void move(Call& call) {
    Group* groups = const_cast<Group*>(moved(call.groups));
    for (int64_t i = 0; i < call.num_groups; ++i) {
        Group& group = groups[i];
        move(group.queries);
        Places* keys = const_cast<Places*>(moved(group.keys));
        for (int64_t part = 0; part < group.num_parts; ++part) move(keys[part]);
        moved(group.mask);
        moved(group.window_rows);
        moved(group.window_columns);
    }
    for (Matrix* x : {&call.q, &call.k, &call.v, &call.out, &call.rows, &call.columns,
                      &call.d_out, &call.d_q, &call.d_k, &call.d_v, &call.d_rows,
                      &call.d_columns})
        moved(x->data);
    moved(call.lse);
    moved(call.bias.data);
    moved(call.key_mask);
    moved(call.d_lse);
    moved(call.d_bias);
    moved(call.sinks);
    moved(call.delta);
    moved(call.table.data);
    moved(call.table.query);
    moved(call.table.key);
    moved(call.d_table);
    moved(call.order);
    moved(call.pieces);
}

bool read(const char* path) {
    FILE* file = fopen(path, "rb");
    if (!file) return false;
    fseek(file, 0, SEEK_END);
    blob.resize(ftell(file));
    rewind(file);
    const bool whole = fread(blob.data(), 1, blob.size(), file) == blob.size();
    fclose(file);
    return whole;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3 || !read(argv[1])) return 2;
    const Header& header = *(Header*)blob.data();
    if (header.call_size != (int64_t)sizeof(Call)) return 3;
    Call* call = (Call*)(blob.data() + sizeof(Header));
    segments = (Segment*)(blob.data() + sizeof(Header) + sizeof(Call));
    num_segments = header.num_segments;
    move(*call);
    const int failed = header.backward ? foveal_backward(call) : foveal_forward(call);
    FILE* file = fopen(argv[2], "wb");
    if (!file || fwrite(blob.data(), 1, blob.size(), file) != blob.size() || fclose(file)) return 2;
    return failed;
}
