/**
 * What the card's program uses of ONNX Runtime's binding for Java, declared and no more: the program is compiled against
 * it where the binding is not at hand. tests/embed/test_java.py compares the two where it is; they agreed in the sources
 * of June 2025, which name themselves 1.23.0.
 *
 * <p>A method stands here with all that share its name and number of arguments, as the compiler chooses among them.
 */
package ai.onnxruntime;
