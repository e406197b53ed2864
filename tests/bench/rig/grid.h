/* Grids of cells, each measured in a process of its own: its memory is its own, and a cell that fails or runs out of
 * time leaves the others alone. */
#ifndef SL_BENCH_GRID_H
#define SL_BENCH_GRID_H

#include "rig.h"

typedef struct {
  const char *name;              /* quick, default, full */
  double seconds;                /* for the whole grid; 0 = no limit */
  double memory;                 /* bytes a cell may take; 0 = what is free now */
  FILE *json;                    /* an array of cells goes there; NULL = none */
} rig_grid;

/* Measures every cell of the grid that fits, in `base`'s device, repeats and states. Prints a table, with a line for
 * each cell left out and why. Returns how many cells failed (left out is not failed); -1 for an unknown name. */
int rig_grid_run(const rig_grid *grid, const rig_cell *base);

#endif
