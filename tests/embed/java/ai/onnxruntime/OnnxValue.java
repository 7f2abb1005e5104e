package ai.onnxruntime;

public interface OnnxValue extends AutoCloseable {
    public Object getValue() throws OrtException;

    @Override
    public void close();
}
