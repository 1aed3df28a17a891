"""The parts of ``shmexec top``: finding pools, what the system says, and the screen."""
