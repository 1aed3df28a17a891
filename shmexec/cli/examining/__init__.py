"""The parts of ``shmexec doctor``: what it looks at, each check for itself."""
