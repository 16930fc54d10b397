"""What the library is measured by: timings, errors on trained weights, and the papers reproduced."""
