import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.Json;
import java.io.Reader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;

/**
 * A Debezium engine with the cheapest consumer there is: it counts what it is given and keeps nothing.
 *
 * <p>Arguments: a file of properties, and how many events to take. Prints {@code first} when the first batch comes and
 * {@code last COUNT} when all have come, so that whoever reads it can take the time and look at the processes; then it
 * waits to be killed. Without all events it ends with code 1 when the engine does.
 */
public final class EngineDrain {
  private static final CountDownLatch ENDED = new CountDownLatch(1);

  private final long wanted;
  private long taken;

  private EngineDrain(long wanted) {
    this.wanted = wanted;
  }

  private void take(
      List<ChangeEvent<String, String>> events, DebeziumEngine.RecordCommitter<ChangeEvent<String, String>> committer)
      throws InterruptedException {
    if (taken == 0) {
      System.out.println("first");
    }
    for (ChangeEvent<String, String> event : events) {
      committer.markProcessed(event);
    }
    committer.markBatchFinished();
    boolean before = taken < wanted;
    taken += events.size();
    if (before && taken >= wanted) {
      System.out.println("last " + taken);
    }
  }

  public static void main(String[] arguments) throws Exception {
    Properties properties = new Properties();
    try (Reader file = Files.newBufferedReader(Path.of(arguments[0]))) {
      properties.load(file);
    }
    EngineDrain drain = new EngineDrain(Long.parseLong(arguments[1]));
    DebeziumEngine<ChangeEvent<String, String>> engine =
        DebeziumEngine.create(Json.class)
            .using(properties)
            .using(
                (success, message, error) -> {
                  System.err.println(message);
                  if (error != null) {
                    error.printStackTrace();
                  }
                  ENDED.countDown();
                })
            .notifying(drain::take)
            .build();
    Thread thread = new Thread(engine, "engine");
    thread.setDaemon(true);
    thread.start();
    ENDED.await();
    System.exit(1);
  }
}
