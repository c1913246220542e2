#!/bin/sh
# Begins a run, or resumes it where its last checkpoint is: run.sh RECIPE RUN
set -eu
if [ -e "$2/recipe.toml" ]; then
  exec burnish train --resume "$2"
fi
exec burnish train "$1" --run-dir "$2"
