package ai.onnxruntime;

import java.nio.ByteBuffer;

public final class OrtEnvironment implements AutoCloseable {
    OrtEnvironment() {}

    public static synchronized OrtEnvironment getEnvironment() {
        throw new UnsupportedOperationException();
    }

    public OrtSession createSession(String modelPath) throws OrtException {
        throw new UnsupportedOperationException();
    }

    public OrtSession createSession(ByteBuffer modelBuffer) throws OrtException {
        throw new UnsupportedOperationException();
    }

    public OrtSession createSession(byte[] modelArray) throws OrtException {
        throw new UnsupportedOperationException();
    }

    @Override
    public void close() {
        throw new UnsupportedOperationException();
    }
}
