package ai.onnxruntime;

import java.nio.ByteBuffer;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.nio.LongBuffer;
import java.nio.ShortBuffer;

public class OnnxTensor extends OnnxTensorLike {
    OnnxTensor() {}

    public static OnnxTensor createTensor(OrtEnvironment env, Object data) throws OrtException {
        throw new UnsupportedOperationException();
    }

    public static OnnxTensor createTensor(OrtEnvironment env, String[] data, long[] shape) throws OrtException {
        throw new UnsupportedOperationException();
    }

    public static OnnxTensor createTensor(OrtEnvironment env, FloatBuffer data, long[] shape) throws OrtException {
        throw new UnsupportedOperationException();
    }

    public static OnnxTensor createTensor(OrtEnvironment env, DoubleBuffer data, long[] shape) throws OrtException {
        throw new UnsupportedOperationException();
    }

    public static OnnxTensor createTensor(OrtEnvironment env, ByteBuffer data, long[] shape) throws OrtException {
        throw new UnsupportedOperationException();
    }

    public static OnnxTensor createTensor(OrtEnvironment env, ShortBuffer data, long[] shape) throws OrtException {
        throw new UnsupportedOperationException();
    }

    public static OnnxTensor createTensor(OrtEnvironment env, IntBuffer data, long[] shape) throws OrtException {
        throw new UnsupportedOperationException();
    }

    public static OnnxTensor createTensor(OrtEnvironment env, LongBuffer data, long[] shape) throws OrtException {
        throw new UnsupportedOperationException();
    }

    @Override
    public Object getValue() throws OrtException {
        throw new UnsupportedOperationException();
    }

    @Override
    public synchronized void close() {
        throw new UnsupportedOperationException();
    }
}
