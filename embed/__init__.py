"""What an app embeds: the JavaScript module, the C++ header, and the page that `ohlol web` writes. No torch, no onnx."""
