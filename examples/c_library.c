/* The library of c_library.py: columns, each in an allocation of its own. */
#include <stdlib.h>

typedef struct {
    int n;
    float *px, *py, *pt;
} Tracks;

Tracks *tracks_new(int n) {
    Tracks *t = malloc(sizeof *t);
    t->n = n;
    /* malloc would do, too; XLA reads in place what begins on a multiple of 64 bytes. */
    float **columns[] = {&t->px, &t->py, &t->pt};
    for (int k = 0; k < 3; ++k) *columns[k] = aligned_alloc(64, (n * sizeof(float) / 64 + 1) * 64);
    for (int i = 0; i < n; ++i) t->px[i] = 3 * i, t->py[i] = 4 * i;
    return t;
}

void tracks_delete(Tracks *t) {
    free(t->px), free(t->py), free(t->pt), free(t);
}

/* What the model has written. */
double tracks_sum(const Tracks *t) {
    double sum = 0;
    for (int i = 0; i < t->n; ++i) sum += t->pt[i];
    return sum;
}
