"""Save the weights after each epoch, and load them into a new model (Keras 3)."""

import tensorflow as tf
from digits import load_data

import holdfast.keras

(train_images, train_labels), (test_images, test_labels) = load_data()


def create_model():
    model = tf.keras.models.Sequential(
        [
            tf.keras.layers.Dense(64, activation="relu", input_shape=train_images.shape[1:]),
            tf.keras.layers.Dropout(0.2),
            tf.keras.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer="adam",
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


checkpoint_path = "training_1/cp.ckpt"

cp_callback = holdfast.keras.ModelCheckpoint(filepath=checkpoint_path, save_weights_only=True, verbose=1)

model = create_model()
model.fit(
    train_images,
    train_labels,
    epochs=10,
    validation_data=(test_images, test_labels),
    callbacks=[cp_callback],
    verbose=2,
)

model = create_model()
loss, acc = model.evaluate(test_images, test_labels, verbose=2)
print(f"Untrained model, accuracy: {100 * acc:5.2f}%")

holdfast.keras.load_weights(model, checkpoint_path)
loss, acc = model.evaluate(test_images, test_labels, verbose=2)
print(f"Restored model, accuracy: {100 * acc:5.2f}%")
