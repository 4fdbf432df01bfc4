"""The top floor: the command line's commands, one run and several, sweeps, deployments, and use from Python."""
