"""The world model in torch: encoder, dynamics, heads, decoder, and their export to ONNX."""
