/* The native part: the block allocator in C, and a NumPy data handler on it (NEP 49).
 *
 * BlockAllocator has the interface and the rules of allocator.py, which explains them.
 * Beyond that it can be attached to a mapped segment; then arrays that NumPy makes while
 * the allocator's handler is set are born in that segment, as far as the quota reaches.
 *
 * Who may call what. The functions named heap_* are called by NumPy, on any thread, with
 * or without the GIL. All others need the GIL. One mutex per arena guards everything in
 * it. While it is held no Python object is touched: that could run the collector, whose
 * finalizers free arrays, and so come back here. Nobody who holds it waits for the GIL.
 *
 * After a fork the arenas of the parent are dead in the child: it allocates nothing
 * there, and ignores frees. Its view of them becomes private, so that what it writes
 * changes nothing in its parent.
 *
 * Ownership. Records of extents and chunks are private memory of the process, from
 * malloc. An arena that was attached is never freed, and keeps its mapping: arrays may
 * outlive whatever made it, and die as late as in the interpreter's own end.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define ALIGNMENT ((size_t)64)
#define CHUNK page_size
#define BINS 256
#define NEAR_FITS 8

#ifndef MADV_POPULATE_WRITE /* Linux 5.14; older C libraries have no name for it */
#define MADV_POPULATE_WRITE 23
#endif

enum State {
    FREE,
    OWNED, /* handed out by allocate(), to be given back by free() */
    BORN   /* holds the data of a NumPy array, which will free it */
};

typedef struct Extent {
    size_t start, length;
    struct Extent *left, *right;   /* the tree, ordered by start */
    struct Extent *before, *after; /* neighbours in the arena */
    struct Extent *newer, *older;  /* in the bin, if free */
    uint32_t priority;             /* in the tree: parents have the larger one */
    uint32_t epoch;                /* how many forks came before its birth */
    uint32_t pins;
    unsigned char state;
    unsigned char released; /* NumPy freed it, but pins or a forked child keep it */
} Extent;

typedef struct Arena {
    pthread_mutex_t mutex;
    unsigned long process; /* value of `forks` when made: another one means dead */
    size_t size, limit, top, used, quota;
    Extent *tree, *first, *last;
    Extent *bins[BINS]; /* the newest of each */
    uint64_t filled[BINS / 64];
    uint32_t seed;
    unsigned char *chunks; /* 1: has memory behind it */
    size_t n_chunks, committed_chunks, n_live;
    size_t covered; /* chunks from this one on never had memory */
    size_t recycled, faulted; /* blocks */
    /* What the handler needs. */
    char *base; /* NULL until attached */
    int descriptor;
    int by_fallocate;
    size_t threshold;
    size_t born_bytes, missed, missed_peak;
    uint32_t epoch, fork_floor;
    PyDataMem_Handler handler;
    struct Arena *next; /* in the list of attached arenas */
} Arena;

static size_t page_size;     /* 4 KiB or more */
static unsigned long forks;  /* of this process's line: grows in each forked child */
static Arena *attached;      /* grows only, with the GIL held */
static PyDataMemAllocator *plain; /* NumPy's own */

/* -- the tree: a treap, so that no balance has to be kept ---------------------------- */

static void
tree_insert(Arena *arena, Extent *extent)
{
    Extent **link = &arena->tree;
    arena->seed = arena->seed * 1664525u + 1013904223u;
    /* The low bits of such a generator have short periods: mix before use. */
    extent->priority = (arena->seed ^ (arena->seed >> 15)) * 2654435769u;
    while (*link != NULL && (*link)->priority >= extent->priority) {
        link = extent->start < (*link)->start ? &(*link)->left : &(*link)->right;
    }
    Extent *rest = *link, **low = &extent->left, **high = &extent->right;
    *link = extent;
    while (rest != NULL) {
        if (rest->start < extent->start) {
            *low = rest;
            low = &rest->right;
            rest = rest->right;
        }
        else {
            *high = rest;
            high = &rest->left;
            rest = rest->left;
        }
    }
    *low = *high = NULL;
}

static void
tree_remove(Arena *arena, Extent *extent)
{
    Extent **link = &arena->tree, *low = extent->left, *high = extent->right;
    while (*link != extent) {
        link = extent->start < (*link)->start ? &(*link)->left : &(*link)->right;
    }
    while (low != NULL && high != NULL) {
        if (low->priority > high->priority) {
            *link = low;
            link = &low->right;
            low = low->right;
        }
        else {
            *link = high;
            link = &high->left;
            high = high->left;
        }
    }
    *link = low != NULL ? low : high;
}

/* The extent that holds a byte below the top, or NULL. */
static Extent *
extent_around(Arena *arena, size_t offset)
{
    Extent *found = NULL, *at = arena->tree;
    while (at != NULL) {
        if (at->start <= offset) {
            found = at;
            at = at->right;
        }
        else {
            at = at->left;
        }
    }
    return found != NULL && offset - found->start < found->length ? found : NULL;
}

static Extent *
live_extent(Arena *arena, long long offset)
{
    Extent *found = offset < 0 ? NULL : extent_around(arena, (size_t)offset);
    if (found == NULL || found->state == FREE || found->start != (size_t)offset) {
        return NULL;
    }
    return found;
}

/* -- neighbours and bins -------------------------------------------------------------- */

/* Enter a new extent behind `before`, or as the first. */
static void
link_extent(Arena *arena, Extent *extent, Extent *before)
{
    Extent *after = before != NULL ? before->after : arena->first;
    extent->before = before;
    extent->after = after;
    *(before != NULL ? &before->after : &arena->first) = extent;
    *(after != NULL ? &after->before : &arena->last) = extent;
    tree_insert(arena, extent);
}

static void
unlink_extent(Arena *arena, Extent *extent)
{
    Extent *before = extent->before, *after = extent->after;
    *(before != NULL ? &before->after : &arena->first) = after;
    *(after != NULL ? &after->before : &arena->last) = before;
    tree_remove(arena, extent);
    free(extent);
}

static int
bin_of(size_t nbytes)
{
    size_t lines = nbytes / ALIGNMENT;
    int shift = (lines ? 64 - __builtin_clzll(lines) : 0) - 3;
    return shift > 0 ? (shift << 2) + (int)(lines >> shift) : (int)lines;
}

static void
bin_push(Arena *arena, Extent *extent)
{
    int bin = bin_of(extent->length);
    extent->state = FREE;
    extent->newer = NULL;
    extent->older = arena->bins[bin];
    if (extent->older != NULL) {
        extent->older->newer = extent;
    }
    arena->bins[bin] = extent;
    arena->filled[bin / 64] |= (uint64_t)1 << (bin % 64);
}

static void
bin_remove(Arena *arena, Extent *extent)
{
    int bin = bin_of(extent->length);
    if (extent->older != NULL) {
        extent->older->newer = extent->newer;
    }
    if (extent->newer != NULL) {
        extent->newer->older = extent->older;
        return;
    }
    arena->bins[bin] = extent->older;
    if (extent->older == NULL) {
        arena->filled[bin / 64] ^= (uint64_t)1 << (bin % 64);
    }
}

/* The lowest bin above `bin` that holds something, or -1. */
static int
next_filled(Arena *arena, int bin)
{
    int word = ++bin / 64;
    if (word >= BINS / 64) {
        return -1;
    }
    uint64_t bits = arena->filled[word] & (~(uint64_t)0 << (bin % 64));
    while (bits == 0) {
        if (++word == BINS / 64) {
            return -1;
        }
        bits = arena->filled[word];
    }
    return word * 64 + __builtin_ctzll(bits);
}

/* -- blocks. The mutex is held from here on, unless said otherwise -------------------- */

static Extent *
find_free(Arena *arena, size_t need)
{
    int bin = bin_of(need), looked = 0;
    if (bin >= BINS) {
        return NULL;
    }
    Extent *at = arena->bins[bin];
    for (; at != NULL && looked < NEAR_FITS; at = at->older, looked++) {
        if (at->length >= need) {
            return at;
        }
    }
    int larger = next_filled(arena, bin);
    if (larger >= 0) {
        return arena->bins[larger];
    }
    /* Nothing is left but the top, whose pages cost far more than this search. */
    while (at != NULL && at->length < need) {
        at = at->older;
    }
    return at;
}

/* Never-touched space; if `grow`, with the free extent just below it. */
static Extent *
take_top(Arena *arena, size_t need, int grow)
{
    Extent *last = arena->last;
    if (grow && last != NULL && last->state == FREE) {
        if (need > arena->limit - last->start) {
            return NULL;
        }
        bin_remove(arena, last);
        last->length = need;
        arena->top = last->start + need;
        return last;
    }
    if (need > arena->limit - arena->top) {
        return NULL;
    }
    Extent *made = calloc(1, sizeof *made);
    if (made != NULL) {
        made->start = arena->top;
        made->length = need;
        arena->top += need;
        link_extent(arena, made, last);
    }
    return made;
}

static void
touched(size_t offset, size_t nbytes, size_t *first, size_t *last)
{
    *first = offset / CHUNK;
    *last = (offset + nbytes + CHUNK - 1) / CHUNK;
}

static size_t
count_chunks(Arena *arena, int value, size_t first, size_t last)
{
    size_t number = 0;
    unsigned char *at = memchr(arena->chunks + first, value, last - first);
    if (at == NULL) {
        return 0; /* by far the most frequent case */
    }
    for (; at < arena->chunks + last; at++) {
        number += *at == value;
    }
    return number;
}

/* A live block, or NULL: the arena is full, or this process is out of memory. */
static Extent *
take(Arena *arena, size_t need, enum State state, int never_touched)
{
    Extent *block = never_touched ? NULL : find_free(arena, need);
    if (block == NULL) {
        block = take_top(arena, need, !never_touched);
        if (block == NULL) {
            return NULL;
        }
    }
    else {
        Extent *rest = NULL;
        if (block->length > need) {
            rest = calloc(1, sizeof *rest);
            if (rest == NULL) {
                return NULL;
            }
        }
        bin_remove(arena, block);
        if (rest != NULL) {
            rest->start = block->start + need;
            rest->length = block->length - need;
            block->length = need;
            link_extent(arena, rest, block);
            bin_push(arena, rest);
        }
    }
    block->state = (unsigned char)state;
    block->released = 0;
    block->pins = 0;
    block->epoch = arena->epoch;
    arena->used += need;
    arena->n_live++;
    size_t first, last;
    touched(block->start, need, &first, &last);
    if (memchr(arena->chunks + first, 0, last - first) != NULL) {
        arena->faulted++;
    }
    else {
        arena->recycled++;
    }
    if (state == BORN) {
        arena->born_bytes += need;
    }
    return block;
}

/* Make a block free and merge it with its neighbours; returns the free extent. */
static Extent *
give(Arena *arena, Extent *block)
{
    Extent *before = block->before, *after = block->after;
    arena->used -= block->length;
    arena->n_live--;
    if (block->state == BORN) {
        arena->born_bytes -= block->length;
    }
    if (before != NULL && before->state == FREE) {
        bin_remove(arena, before);
        before->length += block->length;
        unlink_extent(arena, block);
        block = before;
    }
    if (after != NULL && after->state == FREE) {
        bin_remove(arena, after);
        block->length += after->length;
        unlink_extent(arena, after);
    }
    bin_push(arena, block);
    return block;
}

/* -- pages ------------------------------------------------------------------------------ */

static void
mark_committed(Arena *arena, size_t offset, size_t nbytes)
{
    size_t first, last;
    touched(offset, nbytes, &first, &last);
    arena->committed_chunks += count_chunks(arena, 0, first, last);
    memset(arena->chunks + first, 1, last - first);
    if (last > arena->covered) {
        arena->covered = last;
    }
}

/* Chunks that lie wholly in a range. */
static void
whole(Arena *arena, size_t start, size_t end, size_t *first, size_t *last)
{
    *last = end >= arena->size ? arena->n_chunks : end / CHUNK;
    *first = (start + CHUNK - 1) / CHUNK;
    if (*last < *first) {
        *last = *first;
    }
}

static size_t
committed(Arena *arena)
{
    /* The arena's last chunk may be a short one. */
    size_t spare = arena->n_chunks * CHUNK - arena->size;
    size_t cut = arena->chunks[arena->n_chunks - 1] ? spare : 0;
    return arena->committed_chunks * CHUNK - cut;
}

static void
mark_punched(Arena *arena, size_t offset, size_t nbytes)
{
    size_t first, last, end = offset + nbytes;
    whole(arena, offset, end, &first, &last);
    arena->committed_chunks -= count_chunks(arena, 1, first, last);
    memset(arena->chunks + first, 0, last - first);
    /* A range that reaches the top becomes part of the never-touched space. */
    Extent *tail = arena->last;
    size_t start = (offset + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (tail == NULL || tail->state != FREE || start < tail->start ||
        start >= arena->top || end < arena->top) {
        return;
    }
    bin_remove(arena, tail);
    if (tail->start < start) {
        tail->length = start - tail->start;
        bin_push(arena, tail);
    }
    else {
        unlink_extent(arena, tail);
    }
    arena->top = start;
}

typedef struct {
    size_t start, length;
} Run;

typedef struct {
    Run *items;
    size_t number, room;
    int failed; /* no memory for the list: it ends early */
} Runs;

static void
add_run(Runs *runs, size_t start, size_t length)
{
    if (runs->number == runs->room) {
        size_t room = runs->room ? runs->room * 2 : 16;
        Run *items = realloc(runs->items, room * sizeof *items);
        if (items == NULL) {
            runs->failed = 1;
            return;
        }
        runs->items = items;
        runs->room = room;
    }
    runs->items[runs->number++] = (Run){start, length};
}

/* The next run of chunks that hold `value`, from *at on; 0 if there is none. */
static int
next_run(Arena *arena, int value, size_t *at, size_t last, Run *run)
{
    unsigned char *end, *begin;
    if (*at >= last) {
        return 0;
    }
    begin = memchr(arena->chunks + *at, value, last - *at);
    if (begin == NULL) {
        return 0;
    }
    size_t from = (size_t)(begin - arena->chunks);
    end = memchr(begin, 1 - value, last - from);
    *at = end != NULL ? (size_t)(end - arena->chunks) : last;
    size_t stop = *at * CHUNK;
    run->start = from * CHUNK;
    run->length = (stop < arena->size ? stop : arena->size) - run->start;
    return 1;
}

static int
by_length(const void *one, const void *other)
{
    const Run *a = one, *b = other;
    if (a->length != b->length) {
        return a->length < b->length ? -1 : 1;
    }
    return a->start < b->start ? -1 : a->start > b->start;
}

/* Committed runs that no live block needs, but for `keep` bytes; largest extents last. */
static void
idle_runs(Arena *arena, size_t keep, Runs *found)
{
    Runs extents = {0};
    for (Extent *at = arena->first; at != NULL; at = at->after) {
        if (at->state == FREE) {
            add_run(&extents, at->start, at->length);
        }
    }
    if (arena->last == NULL || arena->last->state != FREE) {
        add_run(&extents, arena->top, 0);
    }
    if (extents.number) {
        qsort(extents.items, extents.number, sizeof *extents.items, by_length);
    }
    for (size_t i = 0; i < extents.number; i++) {
        size_t start = extents.items[i].start, end = start + extents.items[i].length;
        size_t at, last;
        Run run;
        /* Nothing is live above the top: a chunk that reaches across it is idle. */
        whole(arena, start, end == arena->top ? arena->size : end, &at, &last);
        last = last < arena->covered ? last : arena->covered;
        while (next_run(arena, 1, &at, last, &run)) {
            size_t kept = (keep + CHUNK - 1) / CHUNK * CHUNK;
            kept = kept < run.length ? kept : run.length;
            keep = keep > kept ? keep - kept : 0;
            if (kept < run.length) {
                add_run(found, run.start + kept, run.length - kept);
            }
        }
    }
    found->failed |= extents.failed;
    free(extents.items);
}

/* Give idle pages beyond `keep` bytes back to the system; returns how many bytes. */
static size_t
trim(Arena *arena, size_t keep)
{
    size_t gone = 0;
#ifdef MADV_REMOVE
    Runs runs = {0};
    idle_runs(arena, keep, &runs);
    for (size_t i = runs.number; i-- > 0;) {
        Run run = runs.items[i];
        if (madvise(arena->base + run.start, run.length, MADV_REMOVE) == 0) {
            mark_punched(arena, run.start, run.length);
            gone += run.length;
        }
    }
    free(runs.items);
#else
    (void)arena, (void)keep;
#endif
    return gone;
}

/* Have pages allocated before anybody touches them; needs no mutex. 0 or an errno. */
static int
commit(Arena *arena, size_t start, size_t length)
{
    if (arena->by_fallocate) {
        /* /dev/shm has a size of its own: past it, touching is SIGBUS. */
        int failed = posix_fallocate(arena->descriptor, (off_t)start, (off_t)length);
        if (failed) {
            return failed;
        }
    }
    int failed;
    do {
        failed = madvise(arena->base + start, length, MADV_POPULATE_WRITE) ? errno : 0;
    } while (failed == EINTR || failed == EAGAIN);
    if (failed != EINVAL) {
        return failed;
    }
    /* An older kernel: it cannot enter them into the page table, but allocate them. */
    return arena->by_fallocate
               ? 0
               : posix_fallocate(arena->descriptor, (off_t)start, (off_t)length);
}

static int
commit_fresh(Arena *arena, Extent *block)
{
    size_t at, last;
    Run run;
    touched(block->start, block->length, &at, &last);
    while (next_run(arena, 0, &at, last, &run)) {
        if (commit(arena, run.start, run.length)) {
            return -1;
        }
    }
    return 0;
}

/* -- arrays ------------------------------------------------------------------------------ */

/* Whether a forked child may look at the block. */
static int
seen_by_fork(Arena *arena, Extent *block)
{
    return block->epoch < arena->fork_floor;
}

/* Never-touched pages are zero and need no commit, which would cost more than they do;
 * of the chunks at the block's ends, the parts that were in use are cleared. */
static void
clear_used(Arena *arena, Extent *block)
{
    size_t at, last, end = block->start + block->length;
    Run run;
    touched(block->start, block->length, &at, &last);
    while (next_run(arena, 1, &at, last, &run)) {
        size_t from = run.start > block->start ? run.start : block->start;
        size_t to = run.start + run.length < end ? run.start + run.length : end;
        memset(arena->base + from, 0, to - from);
    }
}

/* Memory for an array in the arena, or NULL: dead, over quota, or no pages to be had. */
static void *
born(Arena *arena, size_t nbytes, int zeroed)
{
    size_t need = (nbytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    void *data = NULL;
    if (need < nbytes || arena->process != forks) {
        return NULL;
    }
    pthread_mutex_lock(&arena->mutex);
    if (arena->used > arena->quota || need > arena->quota - arena->used) {
        goto done;
    }
    size_t spare = arena->quota - arena->used - need;
    if (zeroed && committed(arena) + need > arena->quota) {
        goto done; /* it would have to take warm pages from others */
    }
    Extent *block = take(arena, need, BORN, zeroed);
    if (block == NULL) {
        goto done;
    }
    size_t first, last;
    touched(block->start, need, &first, &last);
    size_t fresh = count_chunks(arena, 0, first, last);
    if (fresh) {
        if (committed(arena) + fresh * CHUNK > arena->quota) {
            trim(arena, spare);
        }
        if (zeroed) {
            clear_used(arena, block);
        }
        if ((!zeroed || arena->by_fallocate) && commit_fresh(arena, block)) {
            give(arena, block);
            goto done;
        }
        mark_committed(arena, block->start, need);
    }
    else if (zeroed) {
        clear_used(arena, block);
    }
    data = arena->base + block->start;
done:
    pthread_mutex_unlock(&arena->mutex);
    return data;
}

static int
is_inside(Arena *arena, void *data)
{
    return (char *)data >= arena->base && (char *)data < arena->base + arena->size;
}

static void
count_miss(Arena *arena, size_t nbytes)
{
    pthread_mutex_lock(&arena->mutex);
    arena->missed += nbytes;
    if (arena->missed > arena->missed_peak) {
        arena->missed_peak = arena->missed;
    }
    pthread_mutex_unlock(&arena->mutex);
}

static void *
heap_malloc(void *context, size_t nbytes)
{
    Arena *arena = context;
    if (nbytes >= arena->threshold && arena->process == forks) {
        void *data = born(arena, nbytes, 0);
        if (data != NULL) {
            return data;
        }
        count_miss(arena, nbytes);
    }
    return plain->malloc(plain->ctx, nbytes);
}

/* Never-touched pages, or those of malloc: what was used would have to be cleared. */
static void *
heap_calloc(void *context, size_t number, size_t each)
{
    Arena *arena = context;
    size_t nbytes;
    if (!__builtin_mul_overflow(number, each, &nbytes) && nbytes >= arena->threshold) {
        void *data = born(arena, nbytes, 1);
        if (data != NULL) {
            return data;
        }
    }
    return plain->calloc(plain->ctx, number, each);
}

static void
heap_free(void *context, void *data, size_t nbytes)
{
    Arena *arena = context;
    if (!is_inside(arena, data)) {
        if (nbytes >= arena->threshold && arena->process == forks) {
            pthread_mutex_lock(&arena->mutex);
            arena->missed -= nbytes < arena->missed ? nbytes : arena->missed;
            pthread_mutex_unlock(&arena->mutex);
        }
        plain->free(plain->ctx, data, nbytes);
        return;
    }
    if (arena->process != forks) {
        return;
    }
    pthread_mutex_lock(&arena->mutex);
    Extent *block = live_extent(arena, (char *)data - arena->base);
    if (block != NULL && block->state == BORN) {
        if (block->pins || seen_by_fork(arena, block)) {
            block->released = 1;
        }
        else {
            give(arena, block);
        }
    }
    pthread_mutex_unlock(&arena->mutex);
}

static void *
heap_realloc(void *context, void *data, size_t nbytes)
{
    Arena *arena = context;
    if (!is_inside(arena, data)) {
        return plain->realloc(plain->ctx, data, nbytes);
    }
    pthread_mutex_lock(&arena->mutex);
    Extent *block = live_extent(arena, (char *)data - arena->base);
    size_t had = block != NULL ? block->length : 0;
    pthread_mutex_unlock(&arena->mutex);
    if (arena->process == forks && nbytes <= had && nbytes > had / 2) {
        return data;
    }
    void *moved = heap_malloc(context, nbytes);
    if (moved != NULL) {
        memcpy(moved, data, had < nbytes ? had : nbytes);
        heap_free(context, data, had);
    }
    return moved;
}

/* -- forks -------------------------------------------------------------------------------- */

/* All mutexes are taken, so that the child finds the records whole. Their holders wait
 * for nothing, so this cannot hang. */
static void
before_fork(void)
{
    for (Arena *arena = attached; arena != NULL; arena = arena->next) {
        pthread_mutex_lock(&arena->mutex);
    }
}

static void
after_fork_in_parent(void)
{
    for (Arena *arena = attached; arena != NULL; arena = arena->next) {
        if (arena->epoch < arena->fork_floor) {
            arena->epoch = arena->fork_floor; /* what is born now no child has seen */
        }
        pthread_mutex_unlock(&arena->mutex);
    }
}

static void
after_fork_in_child(void)
{
    for (Arena *arena = attached; arena != NULL; arena = arena->next) {
        if (arena->process == forks) {
            /* If this fails, the child shares what it writes, and no more. */
            (void)mmap(arena->base, arena->size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, arena->descriptor, 0);
        }
        pthread_mutex_unlock(&arena->mutex);
    }
    forks++;
}

/* -- the Python type ---------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Arena *arena;
} Allocator;

static PyObject *
unknown_block(const char *action, long long offset)
{
    return PyErr_Format(PyExc_ValueError,
                        "cannot %s the block at offset %lld: no live block starts there; "
                        "it was freed before or belongs to another arena",
                        action, offset);
}

static PyObject *
allocator_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"size", NULL};
    long long size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "L", names, &size)) {
        return NULL;
    }
    if (size < (long long)ALIGNMENT) {
        return PyErr_Format(PyExc_ValueError,
                            "an arena of %lld bytes is too small: %d is the least", size,
                            (int)ALIGNMENT);
    }
    Allocator *self = (Allocator *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    Arena *arena = self->arena = calloc(1, sizeof *arena);
    if (arena != NULL) {
        arena->size = (size_t)size;
        arena->limit = arena->size / ALIGNMENT * ALIGNMENT;
        arena->n_chunks = (arena->size + CHUNK - 1) / CHUNK;
        arena->process = forks;
        arena->seed = 1;
        arena->epoch = 1;
        /* Comes zeroed from the system, which backs it only where it is written. */
        arena->chunks = calloc(arena->n_chunks, 1);
        pthread_mutex_init(&arena->mutex, NULL);
    }
    if (arena == NULL || arena->chunks == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void
allocator_dealloc(Allocator *self)
{
    Arena *arena = self->arena;
    if (arena != NULL && arena->base == NULL) {
        for (Extent *at = arena->first, *after; at != NULL; at = after) {
            after = at->after;
            free(at);
        }
        pthread_mutex_destroy(&arena->mutex);
        free(arena->chunks);
        free(arena);
    }
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *
allocator_allocate(Allocator *self, PyObject *arg)
{
    Arena *arena = self->arena;
    long long nbytes = PyLong_AsLongLong(arg);
    if (nbytes == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (nbytes <= 0) {
        return PyErr_Format(PyExc_ValueError,
                            "cannot allocate %lld bytes: a block holds at least one",
                            nbytes);
    }
    size_t need = ((size_t)nbytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    pthread_mutex_lock(&arena->mutex);
    Extent *block = arena->process == forks ? take(arena, need, OWNED, 0) : NULL;
    size_t start = block != NULL ? block->start : 0;
    pthread_mutex_unlock(&arena->mutex);
    if (block == NULL) {
        Py_RETURN_NONE;
    }
    return PyLong_FromSize_t(start);
}

static PyObject *
allocator_free(Allocator *self, PyObject *arg)
{
    Arena *arena = self->arena;
    long long offset = PyLong_AsLongLong(arg);
    if (offset == -1 && PyErr_Occurred()) {
        return NULL;
    }
    pthread_mutex_lock(&arena->mutex);
    Extent *block = live_extent(arena, offset);
    size_t length = 0;
    if (block != NULL && block->state == OWNED) {
        length = block->length;
        give(arena, block);
    }
    pthread_mutex_unlock(&arena->mutex);
    return length ? PyLong_FromSize_t(length) : unknown_block("free", offset);
}

static PyObject *
allocator_size_of(Allocator *self, PyObject *arg)
{
    Arena *arena = self->arena;
    long long offset = PyLong_AsLongLong(arg);
    if (offset == -1 && PyErr_Occurred()) {
        return NULL;
    }
    pthread_mutex_lock(&arena->mutex);
    Extent *block = live_extent(arena, offset);
    size_t length = block != NULL ? block->length : 0;
    pthread_mutex_unlock(&arena->mutex);
    return length ? PyLong_FromSize_t(length) : unknown_block("measure", offset);
}

static int
parse_range(Arena *arena, PyObject *args, size_t *offset, size_t *nbytes)
{
    long long from, number, size = (long long)arena->size;
    if (!PyArg_ParseTuple(args, "LL", &from, &number)) {
        return -1;
    }
    if (from < 0 || number <= 0 || from > size || number > size - from) {
        PyErr_Format(PyExc_ValueError,
                     "%lld bytes at offset %lld are no part of an arena of %lld bytes: "
                     "check the block the range was taken from",
                     number, from, size);
        return -1;
    }
    *offset = (size_t)from;
    *nbytes = (size_t)number;
    return 0;
}

/* Takes the runs over. */
static PyObject *
list_of_runs(Runs *runs, int reversed)
{
    PyObject *list = runs->failed ? PyErr_NoMemory() : PyList_New((Py_ssize_t)runs->number);
    for (size_t i = 0; list != NULL && i < runs->number; i++) {
        Run run = runs->items[reversed ? runs->number - 1 - i : i];
        PyObject *pair = Py_BuildValue("nn", (Py_ssize_t)run.start, (Py_ssize_t)run.length);
        if (pair == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, pair);
    }
    free(runs->items);
    return list;
}

static PyObject *
allocator_fresh_runs(Allocator *self, PyObject *args)
{
    Arena *arena = self->arena;
    size_t offset, nbytes, at, last;
    Runs runs = {0};
    Run run;
    if (parse_range(arena, args, &offset, &nbytes)) {
        return NULL;
    }
    pthread_mutex_lock(&arena->mutex);
    touched(offset, nbytes, &at, &last);
    while (next_run(arena, 0, &at, last, &run)) {
        add_run(&runs, run.start, run.length);
    }
    pthread_mutex_unlock(&arena->mutex);
    return list_of_runs(&runs, 0);
}

static PyObject *
allocator_mark_committed(Allocator *self, PyObject *args)
{
    size_t offset, nbytes;
    if (parse_range(self->arena, args, &offset, &nbytes)) {
        return NULL;
    }
    pthread_mutex_lock(&self->arena->mutex);
    mark_committed(self->arena, offset, nbytes);
    pthread_mutex_unlock(&self->arena->mutex);
    Py_RETURN_NONE;
}

static PyObject *
allocator_mark_punched(Allocator *self, PyObject *args)
{
    size_t offset, nbytes;
    if (parse_range(self->arena, args, &offset, &nbytes)) {
        return NULL;
    }
    pthread_mutex_lock(&self->arena->mutex);
    mark_punched(self->arena, offset, nbytes);
    pthread_mutex_unlock(&self->arena->mutex);
    Py_RETURN_NONE;
}

static PyObject *
allocator_idle_runs(Allocator *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"keep", NULL};
    Py_ssize_t keep = 0;
    Runs runs = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|n", names, &keep)) {
        return NULL;
    }
    pthread_mutex_lock(&self->arena->mutex);
    idle_runs(self->arena, keep > 0 ? (size_t)keep : 0, &runs);
    pthread_mutex_unlock(&self->arena->mutex);
    return list_of_runs(&runs, 1);
}

/* What is wrong with the records, or NULL. */
static const char *
find_fault(Arena *arena)
{
    size_t position = 0, used = 0, live = 0, born_bytes = 0, in_bins = 0, is_free = 0;
    Extent *before = NULL;
    for (Extent *at = arena->first; at != NULL; before = at, at = at->after) {
        if (at->start != position || at->before != before) {
            return "gap or overlap";
        }
        if (at->length == 0 || at->length % ALIGNMENT) {
            return "an empty or unaligned extent";
        }
        if (extent_around(arena, at->start) != at) {
            return "the tree misses an extent";
        }
        if (at->state == FREE) {
            is_free++;
            if (before != NULL && before->state == FREE) {
                return "free neighbours meet";
            }
        }
        else {
            live++;
            used += at->length;
            born_bytes += at->state == BORN ? at->length : 0;
        }
        position += at->length;
    }
    if (position != arena->top || position > arena->limit || arena->last != before) {
        return "extents do not end at the top";
    }
    for (int bin = 0; bin < BINS; bin++) {
        for (Extent *at = arena->bins[bin]; at != NULL; at = at->older) {
            in_bins++;
            if (at->state != FREE || bin_of(at->length) != bin) {
                return "wrong bin";
            }
        }
        if ((arena->bins[bin] != NULL) != (arena->filled[bin / 64] >> bin % 64 & 1)) {
            return "wrong bitmask";
        }
    }
    if (in_bins != is_free) {
        return "the bins and the free extents disagree";
    }
    if (used != arena->used || live != arena->n_live || born_bytes != arena->born_bytes) {
        return "wrong count of used bytes";
    }
    if (count_chunks(arena, 1, 0, arena->n_chunks) != arena->committed_chunks) {
        return "wrong count of chunks";
    }
    return NULL;
}

static PyObject *
allocator_validate(Allocator *self, PyObject *Py_UNUSED(ignored))
{
    pthread_mutex_lock(&self->arena->mutex);
    const char *fault = find_fault(self->arena);
    pthread_mutex_unlock(&self->arena->mutex);
    if (fault != NULL) {
        PyErr_SetString(PyExc_AssertionError, fault);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* -- attached to a segment ------------------------------------------------------------------ */

/* attach(address, descriptor, by_fallocate, threshold, keep): from here on the arena is
 * never freed. `keep` owns the mapping and the descriptor; it is kept for ever. */
static PyObject *
allocator_attach(Allocator *self, PyObject *args)
{
    Arena *arena = self->arena;
    unsigned long long address;
    Py_ssize_t threshold;
    int descriptor, by_fallocate;
    PyObject *keep;
    if (!PyArg_ParseTuple(args, "KipnO", &address, &descriptor, &by_fallocate, &threshold,
                          &keep)) {
        return NULL;
    }
    if (arena->base != NULL) {
        PyErr_SetString(PyExc_ValueError, "the allocator is attached already");
        return NULL;
    }
    Py_INCREF(keep);
    arena->base = (char *)(uintptr_t)address;
    arena->descriptor = descriptor;
    arena->by_fallocate = by_fallocate;
    arena->threshold = (size_t)threshold;
    arena->handler = (PyDataMem_Handler){
        "shmexec", 1, {arena, heap_malloc, heap_calloc, heap_realloc, heap_free}};
    arena->next = attached;
    attached = arena;
    Py_RETURN_NONE;
}

/* Set the handler in this context; returns the one before, for set_handler(). */
static PyObject *
allocator_enter(Allocator *self, PyObject *Py_UNUSED(ignored))
{
    if (self->arena->base == NULL) {
        PyErr_SetString(PyExc_ValueError, "the allocator is not attached to a segment");
        return NULL;
    }
    /* Arrays keep the capsule; it owns nothing, since the arena stays. */
    PyObject *capsule = PyCapsule_New(&self->arena->handler, "mem_handler", NULL);
    if (capsule == NULL) {
        return NULL;
    }
    PyObject *before = PyDataMem_SetHandler(capsule);
    Py_DECREF(capsule);
    return before;
}

static PyObject *
allocator_commit(Allocator *self, PyObject *args)
{
    size_t offset, nbytes;
    int failed;
    if (parse_range(self->arena, args, &offset, &nbytes)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    failed = commit(self->arena, offset, nbytes);
    Py_END_ALLOW_THREADS
    if (failed) {
        return PyErr_Format(PyExc_MemoryError,
                            "the system has no %zu bytes of shared memory left: %s", nbytes,
                            strerror(failed));
    }
    Py_RETURN_NONE;
}

static PyObject *
allocator_trim(Allocator *self, PyObject *arg)
{
    Py_ssize_t keep = PyLong_AsSsize_t(arg);
    if (keep == -1 && PyErr_Occurred()) {
        return NULL;
    }
    pthread_mutex_lock(&self->arena->mutex);
    size_t gone = trim(self->arena, keep > 0 ? (size_t)keep : 0);
    pthread_mutex_unlock(&self->arena->mutex);
    return PyLong_FromSize_t(gone);
}

/* pin(address, nbytes) -> (start, offset) or None. If these bytes are most of the block of
 * an array born here, the block is pinned: from now on NumPy's free only leaves a mark.
 * The caller drops whatever it has of the array, tries take(), or else ends the pin. */
static PyObject *
allocator_pin(Allocator *self, PyObject *args)
{
    Arena *arena = self->arena;
    unsigned long long address;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "Kn", &address, &length)) {
        return NULL;
    }
    char *data = (char *)(uintptr_t)address;
    size_t nbytes = (size_t)length, start = 0, offset = 0;
    int pinned = 0;
    if (length <= 0 || !is_inside(arena, data)) {
        Py_RETURN_NONE;
    }
    pthread_mutex_lock(&arena->mutex);
    offset = (size_t)(data - arena->base);
    Extent *block = extent_around(arena, offset);
    if (block != NULL && block->state == BORN && !block->released &&
        nbytes <= block->length - (offset - block->start) && nbytes >= block->length / 2) {
        block->pins++;
        pinned = 1;
        start = block->start;
    }
    pthread_mutex_unlock(&arena->mutex);
    if (!pinned) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("nn", (Py_ssize_t)start, (Py_ssize_t)offset);
}

/* Give the ends of an owned block back that hold nothing of [offset, offset + nbytes). */
static void
cut_ends(Arena *arena, Extent *block, size_t offset, size_t nbytes)
{
    size_t from = offset / ALIGNMENT * ALIGNMENT;
    size_t to = (offset + nbytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    size_t end = block->start + block->length;
    Extent *tail = to < end ? calloc(1, sizeof *tail) : NULL;
    if (tail != NULL) {
        *tail = (Extent){.start = to, .length = end - to, .state = OWNED};
        block->length = to - block->start;
        link_extent(arena, tail, block);
        arena->n_live++;
        give(arena, tail);
    }
    Extent *head = from > block->start ? calloc(1, sizeof *head) : NULL;
    if (head != NULL) {
        *head = (Extent){
            .start = block->start, .length = from - block->start, .state = OWNED};
        /* First move the block's start: the tree knows extents by it. */
        block->length -= head->length;
        block->start = from;
        link_extent(arena, head, block->before);
        arena->n_live++;
        give(arena, head);
    }
}

/* take(start, offset, nbytes) -> the start of the block, now owned by the caller and
 * unpinned, if NumPy freed it while it was pinned; else None, and it stays pinned. */
static PyObject *
allocator_take(Allocator *self, PyObject *args)
{
    Arena *arena = self->arena;
    Py_ssize_t start, offset, nbytes;
    if (!PyArg_ParseTuple(args, "nnn", &start, &offset, &nbytes)) {
        return NULL;
    }
    pthread_mutex_lock(&arena->mutex);
    Extent *block = live_extent(arena, start);
    int taken = block != NULL && block->state == BORN && block->pins && block->released &&
                !seen_by_fork(arena, block);
    if (taken) {
        block->state = OWNED;
        block->released = 0;
        arena->born_bytes -= block->length;
        /* Another pin means that something else in it is still to be copied. */
        if (--block->pins == 0) {
            cut_ends(arena, block, (size_t)offset, (size_t)nbytes);
        }
        start = (Py_ssize_t)block->start;
    }
    pthread_mutex_unlock(&arena->mutex);
    if (!taken) {
        Py_RETURN_NONE;
    }
    return PyLong_FromSsize_t(start);
}

/* End one pin; a block that NumPy freed meanwhile is free then. */
static PyObject *
allocator_unpin(Allocator *self, PyObject *arg)
{
    Arena *arena = self->arena;
    long long start = PyLong_AsLongLong(arg);
    if (start == -1 && PyErr_Occurred()) {
        return NULL;
    }
    pthread_mutex_lock(&arena->mutex);
    Extent *block = live_extent(arena, start);
    int pinned = block != NULL && block->pins;
    if (pinned && --block->pins == 0 && block->state == BORN && block->released &&
        !seen_by_fork(arena, block)) {
        give(arena, block);
    }
    pthread_mutex_unlock(&arena->mutex);
    if (!pinned) {
        return unknown_block("unpin", start);
    }
    Py_RETURN_NONE;
}

/* Before a fork: arrays born until it happened are not recycled when they die. Returns
 * what to pass to keep_forks() for as long as the child lives. */
static PyObject *
allocator_note_fork(Allocator *self, PyObject *Py_UNUSED(ignored))
{
    Arena *arena = self->arena;
    pthread_mutex_lock(&arena->mutex);
    uint32_t epoch = arena->fork_floor = arena->epoch + 1;
    pthread_mutex_unlock(&arena->mutex);
    return PyLong_FromUnsignedLong(epoch);
}

/* keep_forks(epoch): of the children noted, the youngest that lives; 0 for none. */
static PyObject *
allocator_keep_forks(Allocator *self, PyObject *arg)
{
    Arena *arena = self->arena;
    unsigned long epoch = PyLong_AsUnsignedLong(arg);
    if (epoch == (unsigned long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    pthread_mutex_lock(&arena->mutex);
    arena->fork_floor = (uint32_t)epoch;
    for (Extent *at = arena->first; at != NULL; at = at->after) {
        if (at->state == BORN && at->released && !at->pins && !seen_by_fork(arena, at)) {
            at = give(arena, at);
        }
    }
    pthread_mutex_unlock(&arena->mutex);
    Py_RETURN_NONE;
}

/* Start counting anew what the handler leaves to malloc. */
static PyObject *
allocator_reset_missed(Allocator *self, PyObject *Py_UNUSED(ignored))
{
    pthread_mutex_lock(&self->arena->mutex);
    self->arena->missed = self->arena->missed_peak = 0;
    pthread_mutex_unlock(&self->arena->mutex);
    Py_RETURN_NONE;
}

/* -- figures ---------------------------------------------------------------------------------- */

enum Figure {
    SIZE,
    USED,
    LIVE_BLOCKS,
    HIGH_WATER,
    COMMITTED,
    IDLE,
    BLOCKS_RECYCLED,
    BLOCKS_FAULTED,
    QUOTA,
    BORN_BYTES,
    MISSED_PEAK
};

static size_t
idle_bytes(Arena *arena)
{
    Runs runs = {0};
    size_t nbytes = 0;
    idle_runs(arena, 0, &runs);
    for (size_t i = 0; i < runs.number; i++) {
        nbytes += runs.items[i].length;
    }
    free(runs.items);
    return nbytes;
}

static size_t
figure(Arena *arena, enum Figure which)
{
    switch (which) {
        case SIZE: return arena->size;
        case USED: return arena->used;
        case LIVE_BLOCKS: return arena->n_live;
        case HIGH_WATER: return arena->top;
        case COMMITTED: return committed(arena);
        case IDLE: return idle_bytes(arena);
        case BLOCKS_RECYCLED: return arena->recycled;
        case BLOCKS_FAULTED: return arena->faulted;
        case QUOTA: return arena->quota;
        case BORN_BYTES: return arena->born_bytes;
        case MISSED_PEAK: return arena->missed_peak;
    }
    return 0;
}

static PyObject *
allocator_figure(Allocator *self, void *which)
{
    pthread_mutex_lock(&self->arena->mutex);
    size_t number = figure(self->arena, (enum Figure)(intptr_t)which);
    pthread_mutex_unlock(&self->arena->mutex);
    return PyLong_FromSize_t(number);
}

static int
allocator_set_quota(Allocator *self, PyObject *value, void *Py_UNUSED(which))
{
    Py_ssize_t quota = value != NULL ? PyLong_AsSsize_t(value) : -1;
    if (quota < 0) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "a quota is a number of bytes, 0 or more");
        }
        return -1;
    }
    pthread_mutex_lock(&self->arena->mutex);
    self->arena->quota = (size_t)quota;
    pthread_mutex_unlock(&self->arena->mutex);
    return 0;
}

#define GETTER(name, which, text) \
    {name, (getter)allocator_figure, NULL, text, (void *)(intptr_t)(which)}

static PyGetSetDef allocator_figures[] = {
    GETTER("size", SIZE, "Length of the arena in bytes."),
    GETTER("used", USED, "Bytes in live blocks, rounding included."),
    GETTER("live_blocks", LIVE_BLOCKS, "How many blocks are handed out."),
    GETTER("high_water", HIGH_WATER, "End of the part that blocks use or used."),
    GETTER("committed", COMMITTED, "Bytes of the arena that have memory behind them."),
    GETTER("idle", IDLE, "Committed bytes that no live block needs."),
    GETTER("blocks_recycled", BLOCKS_RECYCLED, "Blocks given out on committed memory."),
    GETTER("blocks_faulted", BLOCKS_FAULTED, "Blocks given out that needed new pages."),
    GETTER("born_bytes", BORN_BYTES, "Bytes of live arrays that were born here."),
    GETTER("missed_peak", MISSED_PEAK, "Most bytes at once that went to malloc."),
    {"quota", (getter)allocator_figure, (setter)allocator_set_quota,
     "Bytes that live blocks may take for arrays to be born here.",
     (void *)(intptr_t)QUOTA},
    {0},
};

static PyMethodDef allocator_methods[] = {
    {"allocate", (PyCFunction)allocator_allocate, METH_O, "Hand out a block."},
    {"free", (PyCFunction)allocator_free, METH_O, "Take a block back."},
    {"size_of", (PyCFunction)allocator_size_of, METH_O, "The size of a live block."},
    {"fresh_runs", (PyCFunction)allocator_fresh_runs, METH_VARARGS,
     "What must be committed before a range may be written."},
    {"mark_committed", (PyCFunction)allocator_mark_committed, METH_VARARGS,
     "Note that a range has memory behind it."},
    {"mark_punched", (PyCFunction)allocator_mark_punched, METH_VARARGS,
     "Note that a range's memory went back to the system."},
    {"idle_runs", (PyCFunction)(void (*)(void))allocator_idle_runs,
     METH_VARARGS | METH_KEYWORDS, "Committed runs that could be punched."},
    {"validate", (PyCFunction)allocator_validate, METH_NOARGS,
     "Assert that all records agree."},
    {"attach", (PyCFunction)allocator_attach, METH_VARARGS, "Join it with a segment."},
    {"enter", (PyCFunction)allocator_enter, METH_NOARGS,
     "Have arrays born here; returns the handler before."},
    {"commit", (PyCFunction)allocator_commit, METH_VARARGS, "Have pages allocated."},
    {"trim", (PyCFunction)allocator_trim, METH_O, "Punch idle pages."},
    {"pin", (PyCFunction)allocator_pin, METH_VARARGS, "Keep the block of an array."},
    {"take", (PyCFunction)allocator_take, METH_VARARGS, "Own a block NumPy freed."},
    {"unpin", (PyCFunction)allocator_unpin, METH_O, "End a pin."},
    {"note_fork", (PyCFunction)allocator_note_fork, METH_NOARGS,
     "Keep what a forked child will see."},
    {"keep_forks", (PyCFunction)allocator_keep_forks, METH_O,
     "Recycle what no forked child sees any more."},
    {"reset_missed", (PyCFunction)allocator_reset_missed, METH_NOARGS,
     "Start counting anew."},
    {0},
};

static PyTypeObject allocator_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "shmexec.memory._native.BlockAllocator",
    .tp_doc = "The block allocator; see shmexec/memory/allocator.py.",
    .tp_basicsize = sizeof(Allocator),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = allocator_new,
    .tp_dealloc = (destructor)allocator_dealloc,
    .tp_methods = allocator_methods,
    .tp_getset = allocator_figures,
};

/* set_handler(handler): in this context, as enter() returned it. */
static PyObject *
set_handler(PyObject *Py_UNUSED(module), PyObject *handler)
{
    PyObject *before = PyDataMem_SetHandler(handler);
    if (before == NULL) {
        return NULL;
    }
    Py_DECREF(before);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"set_handler", set_handler, METH_O, "Set NumPy's data handler in this context."},
    {0},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "shmexec.memory._native",
    .m_doc = "Block allocator and NumPy data handler; see _native.c.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    import_array();
    PyDataMem_Handler *own =
        PyCapsule_GetPointer(PyDataMem_DefaultHandler, "mem_handler");
    if (own == NULL) {
        return NULL;
    }
    plain = &own->allocator;
    long page = sysconf(_SC_PAGESIZE);
    page_size = page > 4096 ? (size_t)page : 4096;
    if (PyType_Ready(&allocator_type) < 0) {
        return NULL;
    }
    PyObject *module = PyModule_Create(&module_definition);
    if (module == NULL ||
        PyModule_AddObjectRef(module, "BlockAllocator", (PyObject *)&allocator_type) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
    if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) {
        Py_DECREF(module);
        return PyErr_NoMemory();
    }
    return module;
}
