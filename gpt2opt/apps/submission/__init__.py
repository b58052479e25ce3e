"""Hand in the notebook: `gpt2opt check` looks at it point by point, `--fix` mends what is safe to mend, `gpt2opt pack` writes the zip."""
