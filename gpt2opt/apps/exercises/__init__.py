"""One task after each part of the notebook, and the test that decides whether it is solved; see docs/exercises.md."""
