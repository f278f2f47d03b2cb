#!/usr/bin/env bash
# The whole pipeline with the paper's student; variables and steps are described in recipes/run.sh.
exec bash "$(dirname "$0")/../run.sh"
