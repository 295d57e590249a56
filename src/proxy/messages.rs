//! What a session of one's own must say of custom messages: HTTP has none.

/// Implements the methods of `pingora::protocols::http::custom::server::Session` that are about custom messages.
macro_rules! no_custom_messages {
    () => {
        fn take_custom_message_reader(
            &mut self,
        ) -> Option<Box<dyn futures::Stream<Item = pingora::Result<bytes::Bytes>> + Unpin + Send + Sync + 'static>> {
            None
        }

        fn restore_custom_message_reader(
            &mut self,
            _: Box<dyn futures::Stream<Item = pingora::Result<bytes::Bytes>> + Unpin + Send + Sync + 'static>,
        ) -> pingora::Result<()> {
            Ok(())
        }

        fn take_custom_message_writer(
            &mut self,
        ) -> Option<Box<dyn pingora::protocols::http::custom::CustomMessageWrite>> {
            None
        }

        fn restore_custom_message_writer(
            &mut self,
            _: Box<dyn pingora::protocols::http::custom::CustomMessageWrite>,
        ) -> pingora::Result<()> {
            Ok(())
        }
    };
}

pub(super) use no_custom_messages;
