"""shmexec behind the interfaces of other libraries; each module needs its extra."""
