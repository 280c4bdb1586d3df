"""The device a run uses: precision, process group, FSDP and memory."""
