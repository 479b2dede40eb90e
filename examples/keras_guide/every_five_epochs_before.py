"""Save the weights every five epochs under their numbers, and continue from the latest (TensorFlow 2.0 to 2.15)."""

import os

import tensorflow as tf
from digits import load_data

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


checkpoint_path = "training_2/{epoch:d}.ckpt"
checkpoint_dir = os.path.dirname(checkpoint_path)

cp_callback = tf.keras.callbacks.ModelCheckpoint(
    filepath=checkpoint_path, save_weights_only=True, verbose=1, period=5
)

model = create_model()
model.save_weights(checkpoint_path.format(epoch=0))
model.fit(train_images, train_labels, epochs=20, callbacks=[cp_callback], verbose=0)

latest = tf.train.latest_checkpoint(checkpoint_dir)
print("Latest:", latest)
epoch = int(os.path.basename(latest).split(".")[0])

model = create_model()
model.load_weights(latest)
loss, acc = model.evaluate(test_images, test_labels, verbose=2)
print(f"Restored model after epoch {epoch}, accuracy: {100 * acc:5.2f}%")

model.fit(
    train_images, train_labels, initial_epoch=epoch, epochs=epoch + 10, callbacks=[cp_callback], verbose=0
)
print("Latest:", tf.train.latest_checkpoint(checkpoint_dir))
