"""What becomes of a trained model: rebuilt from its run, exported with its preprocessing, served over gRPC."""
