"""Pictures in, numbers to the network, numbers back to boxes and masks. numpy and Pillow only."""
